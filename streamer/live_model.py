"""Follows the pointer to the live model version: publish and roll back without a restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from flagger.errors import ConfigurationError, FlaggerError
from flagger.models import ModelVersion, live_version, load_version

__all__ = ["LiveModel"]

FOLLOW_INTERVAL_S = 1.0
"""How often the pointer is read: publishing and rolling back take effect within about this."""
_log = logging.getLogger(__name__)


class LiveModel:
    """The version that the streamer asks, and its successor once there is a good one.

    Args:
        repository: Folder of the model repository.
        version: The version to begin with.
        is_ready: Tells whether Triton serves a version of the streamer's entry.
    """

    def __init__(self, repository: Path, version: str, is_ready: Callable[[str], bool]) -> None:
        self._repository = repository
        self._version = version
        self._is_ready = is_ready
        self._looked_s = time.monotonic()
        self._refusal = ""

    def successor(self) -> ModelVersion | None:
        """Return a new live version, once; None while nothing has changed or it cannot be used.

        A version that cannot be used is refused with a log line; the present one stays.
        """
        now_s = time.monotonic()
        if now_s - self._looked_s < FOLLOW_INTERVAL_S:
            return None
        self._looked_s = now_s
        try:
            version = live_version(self._repository)
            if version == self._version:
                return None
            found = load_version(self._repository, version)
            if not self._is_ready(version):
                raise ConfigurationError(f"Triton does not serve version {version}.")
        except (FlaggerError, OSError, ValueError) as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                _log.error("Still asking version %s: %s", self._version, error)
            return None
        _log.warning("Model version %s replaces %s", version, self._version)
        self._version = version
        self._refusal = ""
        return found
