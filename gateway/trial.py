"""Follows one trial of the pointer: what the gateway's shadow and its canary have in common."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from flagger.errors import FlaggerError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.pointer import Pointer, read_pointer
from flagger.trials import Attempts
from gateway.live import LiveModel, Serving

__all__ = ["TrialFollower"]


N = TypeVar("N")
T = TypeVar("T")


class TrialFollower(Generic[N, T]):
    """Keeps a trial on while the pointer names it and this gateway can ask its version.

    Args:
        live: Loads and checks versions.
        repository: Folder of the model repository.
        find: Returns what the pointer names; None: nothing.
        version_of: Returns the candidate of what is named.
        begin: Makes a trial of what is named and of the version that is to be asked.
        attempts: When a refused version is looked at again.

    Attributes:
        on: The trial; None: there is none, or its version cannot be used.
    """

    def __init__(
        self,
        live: LiveModel,
        repository: Path,
        find: Callable[[Pointer], N | None],
        version_of: Callable[[N], str],
        begin: Callable[[N, Serving], T],
        attempts: Attempts,
    ) -> None:
        self.on: T | None = None
        self._live = live
        self._repository = repository
        self._find = find
        self._version_of = version_of
        self._begin = begin
        self._attempts = attempts

    @property
    def is_wanted(self) -> bool:
        """True while the pointer names a trial, also one that cannot be asked."""
        return self.on is not None or self._attempts.is_refused

    def end(self) -> None:
        """Turn it off until the pointer says something else."""
        self.on = None

    async def follow(self) -> None:
        """Begin and end for ever as the pointer says."""
        while True:
            await self._refresh()
            await asyncio.sleep(FOLLOW_INTERVAL_S)

    async def _refresh(self) -> None:
        try:
            pointer = await asyncio.to_thread(read_pointer, self._repository)
        except FlaggerError:
            return  # the follower of the live version says so
        named = self._find(pointer)
        version = None if named is None else self._version_of(named)
        policy = None if version is None else pointer.policies_of(version).in_force
        seen = (pointer.version, named, policy)
        if not self._attempts.are_due(seen, asyncio.get_running_loop().time()):
            return
        self.on = None
        if named is None or version is None:
            return
        try:
            serving = await self._live.load(version)
        except (FlaggerError, OSError, ValueError) as error:
            self._attempts.refuse(version, error)
            return
        self.on = self._begin(named, serving)
