"""Who did what to keys and gateways: one JSON object a line, only ever added to."""

from __future__ import annotations

import json
import logging
import os
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["AuditLog"]

logger = logging.getLogger(__name__)


class AuditLog:
    """Writes administrative actions.

    Args:
        path: The file; None: the process's log, at level WARNING.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

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
