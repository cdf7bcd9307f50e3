"""The words of a message.

Short, because they are read on a telephone; no customer's id, because they leave the house.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from flagger.alert import Alert
from review.alerts.digest import Digest
from review.alerts.rules import Severity

__all__ = ["Text", "notice", "of_digest"]

TOLD_VALUES = 5
"""Most values told of each kind."""
_CONTROLS = dict.fromkeys((*range(32), *range(127, 160), 0x2028, 0x2029), " ")
_VERB = {"decline": "declined", "review": "to review"}


@dataclass(frozen=True, slots=True)
class Text:
    """A message for people.

    Attributes:
        title: One line: a mail's subject.
        body: Plain text.
        severity: How loud it is.
    """

    title: str
    body: str
    severity: Severity


def of_digest(digest: Digest, rule: str, desk_url: str = "") -> Text:
    """Return the message about the alerts of a digest.

    Args:
        digest: One alert or many.
        rule: Name of the rule that chose them.
        desk_url: Link to a case with `{transaction_id}` in it; "": none.
    """
    if digest.count == 1:
        return _single(digest.largest[0], digest.severity, rule, desk_url)
    decisions = ", ".join(
        f"{number:,} {_VERB.get(decision, decision)}"
        for decision, number in digest.counts["decision"].most_common()
    )
    title = f"{digest.count:,} flagged payments ({decisions}), {_sum(digest.amounts)}"
    lines = [f"{_time(digest.first_ms)} to {_time(digest.last_ms)}", ""]
    for kind, name in (
        ("channel", "Channels"),
        ("country", "Countries"),
        ("terminal_id", "Terminals"),
        ("reason_code", "Reasons"),
    ):
        lines.append(f"{name}: {_told(digest.counts[kind])}")
    lines += ["", "Largest:"]
    for alert in digest.largest:
        lines.append(f"- {_headline(alert)}, {alert.transaction_id}")
        lines += [f"  {link}" for link in _link(alert, desk_url)]
    lines += ["", f"Rule: {rule}"]
    return _text(title, lines, digest.severity)


def notice(title: str, body: str, severity: Severity) -> Text:
    """Return a message about the service itself."""
    return Text(title, body, severity)


def _single(alert: Alert, severity: Severity, rule: str, desk_url: str) -> Text:
    score = "none" if alert.score is None else f"{alert.score:.3f}"
    lines = [
        f"Transaction {alert.transaction_id}, terminal {alert.terminal_id or 'unknown'}",
        f"Time {_time(alert.event_time)}",
        f"Decided by {alert.decision_source}, score {score}",
        "",
        *(f"- {reason}" for reason in alert.reasons),
        "",
        *_link(alert, desk_url),
        f"Rule: {rule}",
    ]
    return _text(_headline(alert), lines, severity)


def _text(title: str, lines: list[str], severity: Severity) -> Text:
    """Return the message; a line break or control character in an id must not forge a line."""
    clean = [line.translate(_CONTROLS) for line in (title, *lines)]
    return Text(clean[0], "\n".join(clean[1:]), severity)


def _headline(alert: Alert) -> str:
    place = [part for part in (alert.channel, alert.country) if part]
    amount = f"{alert.amount:,.2f} {alert.currency or ''}".strip()
    return ", ".join([f"{alert.decision.upper()} {amount}", *place])


def _link(alert: Alert, desk_url: str) -> list[str]:
    if not desk_url:
        return []
    return [desk_url.replace("{transaction_id}", quote(alert.transaction_id, safe=""))]


def _sum(amounts: Counter[str]) -> str:
    told = [f"{amount:,.2f} {currency}".strip() for currency, amount in amounts.most_common(3)]
    return " + ".join(told) + (" and others" if len(amounts) > 3 else "")


def _told(counter: Counter[str]) -> str:
    told = [f"{value} {number:,}" for value, number in counter.most_common(TOLD_VALUES)]
    rest = sum(counter.values()) - sum(n for _, n in counter.most_common(TOLD_VALUES))
    return ", ".join(told) + (f", others {rest:,}" if rest else "") or "none"


def _time(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
