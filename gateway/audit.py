"""Who did what to keys and gateways: one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["MAX_UNKNOWN_PER_S", "NOBODY", "AuditLog"]

NOBODY = "nobody"
"""Who somebody is that has shown no key or token that is known."""
MAX_UNKNOWN_PER_S = 10
"""Most lines a second about them: anybody may try, and must not fill the disk."""

logger = logging.getLogger(__name__)


class AuditLog:
    """Writes administrative actions.

    Args:
        path: The file; None: the process's log, at level WARNING.
        monotonic_s: The clock.
    """

    def __init__(
        self, path: Path | None, monotonic_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._monotonic_s = monotonic_s
        self._lock = threading.Lock()
        self._second = 0
        self._unknown = 0
        self._left_out = 0

    def write(self, action: str, who: str, **facts: object) -> None:
        """Add one action.

        Args:
            action: What was done, `thing.verb`.
            who: Key id, token subject or user.
            facts: What it was done to; no secrets.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "action": action, "who": who, **facts})
        if self._path is None:
            logger.warning("audit %s", line)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(
            os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a"
        ) as file:
            file.write(line + "\n")

    def write_refused(self, action: str, who: str, **facts: object) -> None:
        """Add an action that was refused; of `NOBODY`, a few a second and the number of the others.

        Args:
            action: What was tried.
            who: As in `write`.
            facts: Why it was refused.
        """
        if who == NOBODY:
            left_out = self._left_out_before()
            if left_out is None:
                return
            facts |= {"left_out": left_out} if left_out else {}
        self.write(action, who, outcome="refused", **facts)

    def _left_out_before(self) -> int | None:
        """Return how many lines were left out before this one; None: it is left out too."""
        with self._lock:
            second = int(self._monotonic_s())
            if second != self._second:
                self._second, self._unknown = second, 0
            if self._unknown == MAX_UNKNOWN_PER_S:
                self._left_out += 1
                return None
            self._unknown += 1
            left_out, self._left_out = self._left_out, 0
            return left_out
