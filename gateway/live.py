"""Which model is asked: follows the repository's pointer to the live version and thresholds."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from flagger.errors import FlaggerError
from flagger.features import FeatureEngine, TransactionBatch
from flagger.features.hashing import key_of
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import load_version
from flagger.pointer import read_pointer
from flagger.policy import Policy
from flagger.reasons import ReasonWriter
from flagger.state.store import decode_records
from flagger.triton import ModelName

__all__ = ["LiveModel", "Serving"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Serving:
    """All that belongs to one model version and must change together.

    Attributes:
        model: What Triton is asked for.
        policy: Thresholds.
        engine: Computes the version's feature rows; holds no state here.
        reasons: Says why, by this policy and this contract.
    """

    model: ModelName
    policy: Policy
    engine: FeatureEngine
    reasons: ReasonWriter = field(init=False, compare=False)

    def __post_init__(self) -> None:
        reasons = ReasonWriter(self.policy, self.engine.contract)
        object.__setattr__(self, "reasons", reasons)  # frozen, and made of the other two

    @classmethod
    def load(cls, repository: Path, entry: str, version: str) -> Serving:
        """Read a version from the repository and warm its kernels up.

        Raises:
            ConfigurationError: The version is missing, damaged or of another feature contract.
        """
        found = load_version(repository, version)
        serving = cls(ModelName(entry, version), found.policy, FeatureEngine(found.contract))
        serving.warm_up()
        return serving

    def warm_up(self) -> None:
        """Compile (or load) the kernels now, so that no payment waits for it."""
        one = np.ones(1, dtype=np.uint64)
        batch = TransactionBatch(
            one, one, one, one.astype(np.int64), np.ones(1), np.zeros((1, 4), dtype=np.uint64)
        )
        none = (decode_records("customer", []), decode_records("terminal", []))
        self.engine.process_detached(batch, *none).hashes()
        key_of("warm")


class LiveModel:
    """The version that is asked now.

    Args:
        serving: The version to begin with.
        repository: Folder of the model repository.
        accept: Called with a new version before the switch; raises FlaggerError to refuse it.

    Attributes:
        current: The version.
        on_switch: Called with each new version, whoever asked for the switch.
    """

    def __init__(
        self,
        serving: Serving,
        repository: Path,
        accept: Callable[[Serving], Awaitable[None]],
    ) -> None:
        self.current = serving
        self.on_switch: Callable[[Serving], None] = lambda _: None
        self._repository = repository
        self._accept = accept
        self._refusal = ""
        self._key: tuple[str, str | None] | None = None

    async def load(self, version: str) -> Serving:
        """Return another version that this gateway could ask.

        Raises:
            FlaggerError: It cannot be used; the text says why.
        """
        entry = self.current.model.name
        serving = await asyncio.to_thread(Serving.load, self._repository, entry, version)
        await self._accept(serving)
        return serving

    async def refresh(self) -> bool:
        """Switch to the live version and thresholds if they are new and good; True on a switch.

        A version that cannot be used is refused with a log line; the present one stays.
        """
        present = self.current
        try:
            key = (await asyncio.to_thread(read_pointer, self._repository)).key
            if key == self._key:
                return False
            serving = await asyncio.to_thread(
                Serving.load, self._repository, present.model.name, key[0]
            )
            if (serving.model, serving.policy) == (present.model, present.policy):
                self._key, self._refusal = key, ""
                return False
            await self._accept(serving)
        except (FlaggerError, OSError, ValueError) as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                logger.error("Still asking version %s: %s", present.model.version, self._refusal)
            return False
        logger.warning(
            "Model version %s (policy %s) replaces %s (policy %s)",
            serving.model.version,
            serving.policy.version,
            present.model.version,
            present.policy.version,
        )
        self.current = serving
        self._key, self._refusal = key, ""
        self.on_switch(serving)
        return True

    async def follow(self) -> None:
        """Refresh for ever."""
        while True:
            await asyncio.sleep(FOLLOW_INTERVAL_S)
            await self.refresh()
