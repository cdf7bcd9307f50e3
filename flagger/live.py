"""Follows the pointer to the live model version and its thresholds, without a restart.

Publishing, rolling back and `flagger policy set` change the pointer. A door asks `successor` now
and then and switches when it gets a version. What cannot be used is refused with one log line, and
the door goes on with what it has.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from flagger.errors import FlaggerError
from flagger.models import ModelVersion, load_version
from flagger.pointer import read_pointer

__all__ = ["FOLLOW_INTERVAL_S", "LiveModel"]

FOLLOW_INTERVAL_S = 1.0
"""How often the pointer is read: changes take effect within about this."""
_log = logging.getLogger(__name__)


class LiveModel:
    """The version that a door asks, and its successor once there is a good one.

    Args:
        repository: Folder of the model repository.
        present: The version to begin with.
        check: Raises FlaggerError unless the door can use a version, for example because Triton
            does not serve it.
        clock_s: Returns monotonic time, seconds.
    """

    def __init__(
        self,
        repository: Path,
        present: ModelVersion,
        check: Callable[[ModelVersion], None],
        *,
        clock_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._repository = repository
        self._present = present
        self._check = check
        self._clock_s = clock_s
        self._looked_s = clock_s()
        self._refusal = ""

    def successor(self) -> ModelVersion | None:
        """Return a new live version or new thresholds, once; None while nothing good is new.

        Reads the pointer at most every FOLLOW_INTERVAL_S. It blocks for the reading of files and
        for `check`.
        """
        now_s = self._clock_s()
        if now_s - self._looked_s < FOLLOW_INTERVAL_S:
            return None
        self._looked_s = now_s
        present = self._present
        try:
            pointer = read_pointer(self._repository)
            own = present.own_policy.version
            if pointer.key[0] == present.version and (pointer.key[1] or own) == (
                present.policy.version
            ):
                self._refusal = ""
                return None
            found = load_version(self._repository, pointer.version)
            self._check(found)
        except (FlaggerError, OSError, ValueError) as error:
            if str(error) != self._refusal:
                self._refusal = str(error)
                _log.error("Still asking version %s: %s", _told(present), error)
            return None
        _log.warning("Model version %s replaces %s", _told(found), _told(present))
        self._present = found
        self._refusal = ""
        return found


def _told(model: ModelVersion) -> str:
    return f"{model.version} (policy {model.policy.version})"
