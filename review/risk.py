"""What a flag may cost: the order of the review queue."""

from __future__ import annotations

from flagger.alert import Alert

__all__ = ["expected_loss", "risk_of"]

_DECLINED_RISK = 1.0
"""A decline that no model scored comes from a deny list or a rule: it counts in full."""
_UNSCORED_RISK = 0.1
"""A review that no model scored counts as one fraud in ten: while the model is away everything may
be in review, and must not push what it scored to the end of the queue."""


def risk_of(alert: Alert) -> float:
    """Return the probability of fraud that a flag is ranked by, 0 to 1."""
    if alert.score is not None:
        return alert.score
    return _DECLINED_RISK if alert.decision == "decline" else _UNSCORED_RISK


def expected_loss(alert: Alert) -> float:
    """Return risk x amount, in units of the transaction's currency."""
    return risk_of(alert) * alert.amount
