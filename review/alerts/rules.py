"""Who is told of which flagged transactions: the file of receivers and rules.

    [receiver.duty]
    url_file = "/run/secrets/duty-mail"      # an Apprise URL; url_env names a variable instead

    [[rule]]
    name = "large declines"
    receivers = ["duty"]
    decision = ["decline"]
    min_amount = 1_000

For each receiver the first rule that names it and matches an alert takes it, so nobody is told
twice. URLs hold passwords and tokens: they never stand in this file, and are never logged.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal, get_args

import msgspec

from flagger.alert import Alert
from flagger.errors import ConfigurationError

__all__ = [
    "MAX_ROUTES",
    "SEVERITIES",
    "AlertRule",
    "AlertRules",
    "Heartbeat",
    "Secret",
    "Segment",
    "Severity",
    "Silence",
    "load_alert_rules",
]

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the least to the most severe."""
MAX_ROUTES = 64
"""Most pairs of rule and receiver: how far each has got is kept in the committed offset's metadata,
of which Kafka stores 4,096 bytes; a pair needs at most 30."""

_Name = Annotated[str, msgspec.Meta(pattern="^[A-Za-z0-9][A-Za-z0-9 ._,:-]{0,63}$")]
_NotNegative = Annotated[float, msgspec.Meta(ge=0)]
_Seconds = Annotated[float, msgspec.Meta(ge=1, le=86_400)]


class Secret(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where a URL that holds a password or a token is kept; exactly one of the two.

    Attributes:
        url_env: Name of an environment variable (not FLAGGER_...: those are settings).
        url_file: A file.
    """

    url_env: str | None = None
    url_file: str | None = None

    def read(self, of: str) -> str:
        """Return the URL.

        Args:
            of: Whose it is, for errors.

        Raises:
            ConfigurationError: It is named in no way or in two, or is not there.
        """
        if (self.url_env is None) == (self.url_file is None):
            raise ConfigurationError(
                f"{of}: say where its URL is kept, either url_env (a variable) or url_file."
            )
        try:
            if self.url_file is not None:
                url = Path(self.url_file).read_text().strip()
            else:
                url = os.environ.get(self.url_env or "", "").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(
                f"{of}: {self.url_file} cannot be read ({type(error).__name__})."
            ) from None
        if not url or len(url.splitlines()) != 1:
            raise ConfigurationError(
                f"{of}: {self.url_file or self.url_env} must hold one URL in one line."
            )
        return url


class Heartbeat(Secret, frozen=True, forbid_unknown_fields=True):
    """A URL that is asked while all is well; whoever watches it calls somebody when it stops.

    Attributes:
        every_s: How often, seconds.
    """

    every_s: _Seconds = 60.0


class Segment(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A group of customers that rules can name; see `review.alerts.segments`.

    Attributes:
        customers_file: A file with one customer id a line, read at the start.
    """

    customers_file: str


class Silence(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Tell somebody when no decision was made for a time.

    Attributes:
        receivers: Whom to tell.
        after_s: For how long, seconds.
    """

    receivers: list[str]
    after_s: _Seconds = 300.0


class AlertRule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which alerts go to whom, and how many messages that may be.

    An empty list of values lets all pass.

    Attributes:
        name: Unique; how far a rule has got is kept under its name.
        receivers: Whom to tell.
        decision: `review`, `decline`.
        decision_source: `model`, `rules`, `fallback`, `list`.
        reason_code: Passes if one of the alert's codes is among these.
        channel: pos, ecom, atm, moto, contactless.
        country: ISO 3166 alpha-2.
        currency: ISO 4217.
        merchant_category: ISO 18245.
        terminal_id: Merchants' terminals.
        segment: Passes if the customer is in one of these segments of the file.
        min_amount: Passes from this amount on, in units of the alert's currency.
        min_score: Passes from this score on; an alert without a score does not.
        min_severity: Passes from this severity on.
        burst: Messages that may follow each other at once, per receiver.
        digest_every_s: After that one message in so many seconds, with everything in between.
        named: Most alerts that one message names one by one, the largest amounts; 1 to 1,000.
    """

    name: _Name
    receivers: list[str]
    decision: list[Literal["review", "decline"]] = []
    decision_source: list[Literal["model", "rules", "fallback", "list"]] = []
    reason_code: list[str] = []
    channel: list[str] = []
    country: list[str] = []
    currency: list[str] = []
    merchant_category: list[str] = []
    terminal_id: list[str] = []
    segment: list[str] = []
    min_amount: _NotNegative = 0.0
    min_score: Annotated[float, msgspec.Meta(ge=0, le=1)] | None = None
    min_severity: Severity = "info"
    burst: Annotated[int, msgspec.Meta(ge=1, le=100_000)] = 5
    digest_every_s: _Seconds = 300.0
    named: Annotated[int, msgspec.Meta(ge=1, le=1_000)] = 10

    def matches(
        self, alert: Alert, severity: Severity, segments: Mapping[str, frozenset[str]]
    ) -> bool:
        """Return True if the alert passes every condition.

        Args:
            alert: What was flagged.
            severity: `AlertRules.severity_of` it.
            segments: Segment -> ids of its customers; each that is named is there.
        """
        if alert.amount < self.min_amount:
            return False
        if SEVERITIES.index(severity) < SEVERITIES.index(self.min_severity):
            return False
        if self.min_score is not None and (alert.score is None or alert.score < self.min_score):
            return False
        if self.reason_code and not set(self.reason_code) & set(alert.reason_codes):
            return False
        if self.segment and not any(alert.customer_id in segments[name] for name in self.segment):
            return False
        return all(
            not wanted or value in wanted
            for wanted, value in (
                (self.decision, alert.decision),
                (self.decision_source, alert.decision_source),
                (self.channel, alert.channel),
                (self.country, alert.country),
                (self.currency, alert.currency),
                (self.merchant_category, alert.merchant_category),
                (self.terminal_id, alert.terminal_id),
            )
        )


class AlertRules(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The whole file.

    Attributes:
        receiver: Name -> where its Apprise URL is kept.
        rule: In their order.
        critical_score: A review with a score from here on is `critical`, as every decline is;
            other reviews are `warning`.
        desk_url: Link to a case, with `{transaction_id}` in it; "": none.
        heartbeat: The dead man's switch.
        silence: Watches for decisions that stay away.
        segment: Name -> whose customers are in it.
    """

    receiver: dict[_Name, Secret]
    rule: list[AlertRule]
    critical_score: float = 0.9
    desk_url: str = ""
    heartbeat: Heartbeat | None = None
    silence: Silence | None = None
    segment: dict[_Name, Segment] = {}

    def severity_of(self, alert: Alert) -> Severity:
        """Return how severe an alert is."""
        if alert.decision == "decline":
            return "critical"
        certain = alert.score is not None and alert.score >= self.critical_score
        return "critical" if certain else "warning"

    def rules_of(self, receiver: str) -> list[AlertRule]:
        """Return the rules that name a receiver, in their order."""
        return [rule for rule in self.rule if receiver in rule.receivers]


def load_alert_rules(path: Path) -> AlertRules:
    """Read and check a file.

    Raises:
        ConfigurationError: Not readable, or something in it is wrong; says which rule and field.
    """
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
        found = msgspec.convert(data, AlertRules)
    except FileNotFoundError:
        raise ConfigurationError(
            f"{path} does not exist. Write receivers and rules (see docs/alerts.md), or name "
            f"another file with FLAGGER_ALERTS_FILE."
        ) from None
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{path}: {_place(str(error), data)}.") from error
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path} cannot be read: {error}.") from error
    _check_names(path, found)
    return found


def _place(text: str, data: dict[str, object]) -> str:
    """Return msgspec's words with the rule's name for `$.rule[2]`."""
    reason, _, where = text.partition(" - at `$")
    where = where.strip("`").lstrip(".")
    rules = data.get("rule")
    if where.startswith("rule[") and isinstance(rules, list):
        number = int(where[5 : where.index("]")])
        named = rules[number].get("name") if isinstance(rules[number], dict) else None
        field = where[where.index("]") + 1 :].lstrip(".")
        where = f"rule {number + 1} ({named or 'without a name'})" + (f", {field}" if field else "")
    return f"{where}: {reason}" if where else reason


def _check_names(path: Path, found: AlertRules) -> None:
    names = [rule.name for rule in found.rule]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigurationError(f"{path}: two rules are named {', '.join(twice)}.")
    users = [(f"rule {rule.name}", rule.receivers) for rule in found.rule]
    if found.silence is not None:
        users.append(("silence", found.silence.receivers))
    for user, receivers in users:
        unknown = sorted(set(receivers) - found.receiver.keys())
        if unknown or not receivers:
            raise ConfigurationError(
                f"{path}: {user}: receivers names {', '.join(unknown) or 'nobody'}; there are "
                f"{', '.join(sorted(found.receiver)) or 'none'}."
            )
    for rule in found.rule:
        if missing := sorted(set(rule.segment) - found.segment.keys()):
            raise ConfigurationError(
                f"{path}: rule {rule.name}: segment names {', '.join(missing)}; there are "
                f"{', '.join(sorted(found.segment)) or 'none'}."
            )
    pairs = [(rule.name, receiver) for rule in found.rule for receiver in set(rule.receivers)]
    if not 0 < len(pairs) <= MAX_ROUTES:
        raise ConfigurationError(
            f"{path}: {len(pairs)} pairs of rule and receiver; there may be 1 to {MAX_ROUTES}."
        )
