"""Follows the file of lists and rules, without a restart.

A door asks `refresh` now and then. A file that cannot be used is refused with one log line, and the
lists and rules in force stay.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

from flagger.errors import ConfigurationError
from flagger.live import FOLLOW_INTERVAL_S
from flagger.overrules import Overruler
from flagger.rulebook import Rulebook, load_rulebook, stamp_of

__all__ = ["LiveRulebook"]

RETRY_REFUSED_S = 5.0
"""How often a file that was refused is tried again: the fault may be mended in a list's file."""
_log = logging.getLogger(__name__)


class LiveRulebook:
    """The lists and rules in force.

    Attributes:
        current: Applies them; replaced in one step, so any thread may read it.
        refusal: Why the file as it is now is not in force; "": it is.

    Args:
        path: The file; None: there are no lists and rules.
        clock_s: Returns monotonic time, seconds.

    Raises:
        ConfigurationError: The file cannot be used: a door does not start without its lists.
    """

    def __init__(self, path: Path | None, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock_s = clock_s
        self._looked_s = clock_s()
        self.refusal = ""
        rulebook = Rulebook() if path is None else load_rulebook(path)
        self.current = Overruler(rulebook)
        self._stamps = rulebook.stamps

    def refresh(self) -> bool:
        """Read the files if one has changed; True if lists and rules are others now.

        Looks at most every FOLLOW_INTERVAL_S. It blocks for the reading of files.
        """
        now_s = self._clock_s()
        interval_s = RETRY_REFUSED_S if self.refusal else FOLLOW_INTERVAL_S
        if self._path is None or now_s - self._looked_s < interval_s:
            return False
        self._looked_s = now_s
        unchanged = all(stamp_of(file) == stamp for file, stamp in self._stamps)
        if unchanged and not self.refusal:
            return False
        try:
            rulebook = load_rulebook(self._path)
        except ConfigurationError as error:
            if str(error) != self.refusal:
                self.refusal = str(error)
                _log.error(
                    "Lists and rules stay at version %s: %s", self.current.rulebook.version, error
                )
            return False
        self._stamps = rulebook.stamps
        self.refusal = ""
        before = self.current.rulebook.version
        if rulebook.version == before:
            return False
        self.current = Overruler(rulebook)
        _log.warning("Lists and rules %s replace %s", rulebook.version, before)
        return True
