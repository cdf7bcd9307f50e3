"""Candidates that are tried beside the live version: how they begin and end, and who follows.

A shadow scores the same traffic and decides nothing; a canary decides a share of the customers.
Both stand in the pointer, so that every door follows, and every change is in the audit. Publishing
or rolling back ends them: they were compared with the version that was live.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from flagger.canary import Canary
from flagger.errors import ConfigurationError, FlaggerError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import ModelVersion, load_version
from flagger.pointer import Pointer, change_pointer, now, read_pointer
from flagger.recode import require_same_rows

__all__ = [
    "RETRY_INTERVAL_S",
    "Attempts",
    "Trials",
    "TrialsFollower",
    "end_canary",
    "set_canary",
    "set_shadow",
]

RETRY_INTERVAL_S = 10.0
"""How often a refused candidate is looked at again."""
_log = logging.getLogger(__name__)


def _candidate(repository: Path, pointer: Pointer | None, version: str) -> ModelVersion:
    """Return a version that can be tried beside the live one; ConfigurationError if it cannot."""
    if pointer is None:
        raise ConfigurationError(
            f"No model version is live in {repository}: publish one with `flagger export`."
        )
    if version == pointer.version:
        raise ConfigurationError(f"Version {version} is the live one: there is nothing to try.")
    model = load_version(repository, version)
    require_same_rows(load_version(repository, pointer.version).contract, model.contract, version)
    return model


def set_shadow(
    repository: Path, version: str | None, *, why: str = "", by: str | None = None
) -> None:
    """Have a candidate score the live traffic without deciding; None: no longer.

    Raises:
        ConfigurationError: No such version, or it cannot be compared with the live one.
    """
    with change_pointer(repository, "shadow", why=why, by=by) as change:
        if version is not None:
            _candidate(repository, change.before, version)
        if change.before is not None:
            change.after = replace(change.before, shadow=version)
            change.details_before = {"shadow": change.before.shadow}
            change.details_after = {"shadow": version}


def set_canary(
    repository: Path,
    version: str | None,
    share: float = 0.0,
    *,
    why: str = "",
    by: str | None = None,
) -> None:
    """Have a candidate decide a share of the customers; None: no longer.

    Raises:
        ConfigurationError: No such version, it cannot be compared with the live one, or the share
            is none that a canary may have.
    """
    with change_pointer(repository, "canary", why=why, by=by) as change:
        canary = None
        if version is not None:
            canary = Canary(version, share, now())
            _candidate(repository, change.before, version)
        if change.before is not None:
            change.after = replace(change.before, canary=canary)
            change.details_before = {"canary": _told(change.before.canary)}
            change.details_after = {"canary": _told(canary)}


def end_canary(repository: Path, canary: Canary, *, why: str, by: str) -> bool:
    """End a canary for all doors, from within a door that has ended it; True if it was still on.

    Where the pointer cannot be changed, that is logged: the canary goes on at the other doors.
    """
    try:
        with change_pointer(repository, "canary stop", why=why, by=by) as change:
            if change.before is None or change.before.canary != canary:
                return False
            change.after = replace(change.before, canary=None)
            change.details_before = {"canary": _told(canary)}
            change.details_after = {"canary": None}
    except (FlaggerError, OSError) as error:
        _log.error(
            "The canary is off here only, the pointer cannot be changed: %s. Run `flagger "
            "models canary --off` where the repository can be written.",
            error,
        )
        return False
    return True


def _told(canary: Canary | None) -> dict[str, object] | None:
    return None if canary is None else {"version": canary.version, "share": canary.share}


@dataclass(frozen=True)
class Trials:
    """What is tried now.

    Attributes:
        shadow: The version that scores beside the live one.
        canary: Which customers a candidate decides, and its version.
    """

    shadow: ModelVersion | None = None
    canary: tuple[Canary, ModelVersion] | None = None


class Attempts:
    """Says when to look at candidates, and tells of a refusal once.

    What was refused is looked at again every RETRY_INTERVAL_S: Triton may load it later.

    Args:
        verb: What a refused candidate is not, for the log.
    """

    def __init__(self, verb: str = "tried") -> None:
        self._verb = verb
        self._seen: tuple[object, ...] | None = None
        self._refusals: dict[str, str] = {}
        self._told: dict[str, str] = {}
        self._retry_s = 0.0

    @property
    def is_refused(self) -> bool:
        """True if a candidate was, when it was last looked at."""
        return bool(self._refusals)

    def are_due(self, seen: tuple[object, ...], now_s: float) -> bool:
        """Return whether to look at all candidates now; if so, none is refused so far.

        Args:
            seen: What the pointer says of them.
            now_s: Monotonic time, seconds.
        """
        if seen == self._seen and not (self._refusals and now_s >= self._retry_s):
            return False
        self._seen, self._retry_s = seen, now_s + RETRY_INTERVAL_S
        self._told, self._refusals = self._refusals, {}
        return True

    def refuse(self, version: str, error: Exception) -> None:
        """Keep in mind that a candidate cannot be used; says why unless that was said last time."""
        self._refusals[version] = str(error)
        if self._told.get(version) != str(error):
            _log.error("Version %s is not %s: %s", version, self._verb, error)


class TrialsFollower:
    """Follows the pointer's trials; what cannot be used is refused with one log line, and is off.

    Args:
        repository: Folder of the model repository.
        check: Raises FlaggerError unless the door can use a version.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        repository: Path,
        check: Callable[[ModelVersion], None],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._check = check
        self._clock_s = clock_s
        self._looked_s = -FOLLOW_INTERVAL_S
        self._attempts = Attempts()
        self._told: tuple[object, ...] | None = None

    def changed(self) -> Trials | None:
        """Return what is tried, once after each change; None: nothing new.

        Reads the pointer at most every FOLLOW_INTERVAL_S; blocks for files and for `check`.
        """
        now_s = self._clock_s()
        if now_s - self._looked_s < FOLLOW_INTERVAL_S:
            return None
        self._looked_s = now_s
        try:
            pointer = read_pointer(self._repository)
        except FlaggerError:
            return None  # the follower of the live version says so
        policies = [pointer.policies_of(version).in_force for version in pointer.trials]
        seen = (pointer.version, pointer.shadow, pointer.canary, *policies)
        if not self._attempts.are_due(seen, now_s):
            return None
        shadow = self._usable(pointer.shadow)
        canary = self._usable(pointer.canary.version) if pointer.canary else None
        told = (seen, shadow is not None, canary is not None)
        if told == self._told:
            return None
        self._told = told
        return Trials(shadow, (pointer.canary, canary) if pointer.canary and canary else None)

    def _usable(self, version: str | None) -> ModelVersion | None:
        if version is None:
            return None
        try:
            model = load_version(self._repository, version)
            self._check(model)
        except (FlaggerError, OSError, ValueError) as error:
            self._attempts.refuse(version, error)
            return None
        return model
