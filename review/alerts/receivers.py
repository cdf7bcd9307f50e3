"""Receivers: one thread each, which hands messages to mail, chat or a webhook through Apprise.

Apprise knows some hundred services by URL (https://github.com/caronc/apprise/wiki). It answers yes
or no; this seam adds what an operator needs: waits that grow while a receiver is away, one message
at a time, and no secret in any log.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any
from urllib.parse import unquote, urlsplit

import apprise

from flagger.errors import ConfigurationError
from review.alerts.texts import Text

__all__ = ["Delivery", "Receiver", "Transport", "apprise_transport", "mask_secrets"]

FIRST_WAIT_S = 1.0
LONGEST_WAIT_S = 60.0
"""Waits between two attempts double from the first to this; there is no last attempt."""
TIMEOUT_S = 30.0
"""Longest that one attempt may take; then it counts as failed."""
_TYPES: dict[str, Any] = {
    "info": apprise.NotifyType.INFO,
    "warning": apprise.NotifyType.WARNING,
    "critical": apprise.NotifyType.FAILURE,
}
_LEAST_SECRET = 4
_log = logging.getLogger(__name__)

Transport = Callable[[Text], str]
"""Sends a message; returns "" once the receiver has taken it, else why not, without secrets."""


def mask_secrets(text: str, url: str) -> str:
    """Return `text` with what could be secret in `url` replaced by stars: all but a host's name.

    >>> mask_secrets("no: hooks.example said 403 to T0/S3CR3T", "slack://T0AB/S3CR3T")
    'no: hooks.example said 403 to T0/****'
    """
    parts = urlsplit(url)
    words = [url, parts.username, parts.password, parts.fragment, parts.query]
    words += parts.path.split("/")
    words += [pair.partition("=")[2] for pair in parts.query.split("&")]
    host = parts.netloc.rpartition("@")[2].partition(":")[0]
    if "." not in host and host != "localhost":  # of many services the token stands here
        words.append(host)
    found = {form for word in words if word for form in (word, unquote(word))}
    for word in sorted(found, key=len, reverse=True):
        if len(word) >= _LEAST_SECRET:
            text = text.replace(word, "****")
    return text


def apprise_transport(name: str, url: str) -> Transport:
    """Return what sends messages to an Apprise URL.

    Raises:
        ConfigurationError: No service is known for such a URL.
    """
    library = logging.getLogger("apprise")  # it logs URLs with their tokens
    library.propagate = False
    library.addHandler(logging.NullHandler())  # without one, Python prints warnings
    service = apprise.Apprise.instantiate(url)
    if service is None:
        raise ConfigurationError(
            f"Receiver {name}: its URL (not shown) is none that Apprise {apprise.__version__} "
            f"knows. Examples: mailto://user:password@example.com, slack://tokens, "
            f"jsons://example.com/hook."
        )
    if url.startswith(("mailto:", "mailtos:")):
        # It waits 5.5 s between mails; our own limits are by rule, and the server is the user's.
        service.request_rate_per_sec = 0
    sender = apprise.Apprise()
    sender.add(service)

    def send(text: Text) -> str:
        result = sender.notify(
            title=text.title,
            body=text.body,
            notify_type=_TYPES[text.severity],
            body_format=apprise.NotifyFormat.TEXT,
            timeout=TIMEOUT_S,
        )
        if result:
            return ""
        told = "; ".join(entry.message for entry in result.logs()) or result.status.name
        return mask_secrets(told, url)

    return send


@dataclass(frozen=True, slots=True)
class Delivery:
    """How an attempt ended.

    Attributes:
        receiver: Whose.
        item: What was given with the message.
        why_not: "" if the message was taken.
        at_ms: When it was known, epoch milliseconds.
    """

    receiver: str
    item: Any
    why_not: str
    at_ms: int


class Receiver:
    """One receiver and its thread; `send` returns at once, the outcome is put into `outcomes`.

    Only one thread may call the methods.

    Attributes:
        name: Its name in the file.
        busy: True while a message is under way.
        failing: Why it does not take messages; "": it does, as far as is known.

    Args:
        name: As above.
        transport: Sends a message.
        outcomes: Where `Delivery`s go.
        clock_s: Returns monotonic time, seconds.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        name: str,
        transport: Transport,
        outcomes: SimpleQueue[Delivery],
        *,
        clock_s: Callable[[], float] = time.monotonic,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self.name = name
        self.failing = ""
        self._transport = transport
        self._outcomes = outcomes
        self._clock_s = clock_s
        self._clock_ms = clock_ms
        self.busy = False
        self._wait_s = FIRST_WAIT_S
        self._next_s = clock_s()
        self._work: SimpleQueue[tuple[Text, Any] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=f"receiver-{name}", daemon=True)
        self._thread.start()

    @property
    def free(self) -> bool:
        """True if a message may be sent now."""
        return not self.busy and self._clock_s() >= self._next_s

    def send(self, text: Text, item: Any) -> None:
        """Begin to send; `free` must be true."""
        self.busy = True
        self._work.put((text, item))

    def settle(self, delivery: Delivery) -> None:
        """Take note of an outcome of ours: when the next attempt may be, and what to log."""
        self.busy = False
        if not delivery.why_not:
            if self.failing:
                _log.warning("Receiver %s takes messages again.", self.name)
            self.failing, self._wait_s, self._next_s = "", FIRST_WAIT_S, self._clock_s()
            return
        self.failing = delivery.why_not
        self._next_s = self._clock_s() + self._wait_s
        _log.warning(
            "Receiver %s did not take a message; next attempt in %.0f s: %s",
            self.name,
            self._wait_s,
            delivery.why_not,
        )
        self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def close(self, timeout_s: float) -> None:
        """End the thread; a message under way has so long to arrive."""
        self._work.put(None)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            text, item = work
            try:
                why_not = self._transport(text)
            except Exception as error:  # a plug-in's own fault must not end the thread
                why_not = type(error).__name__
            self._outcomes.put(Delivery(self.name, item, why_not, self._clock_ms()))
