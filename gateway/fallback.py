"""What is decided where the model cannot be asked."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from flagger.features import FeatureRows
from flagger.policy import DECISIONS
from flagger.rules import RuleSet
from flagger.wire.messages import Decision
from gateway.request import ScoringRequest

__all__ = ["Fallback"]


@dataclass(frozen=True)
class Fallback:
    """The setting `FLAGGER_GATEWAY_FALLBACK`.

    Attributes:
        decision: `review` (a person looks), `approve` or `decline`; or `rules`: the rules decide
            where the customer's history is known, and a person looks where it is not.
        rules: The rules.
    """

    decision: Literal["review", "approve", "decline", "rules"] = "review"
    rules: RuleSet = field(default_factory=RuleSet)

    def decide(
        self, request: ScoringRequest, why: str, features: FeatureRows | None = None
    ) -> Decision:
        """Decide without a score.

        Args:
            request: The transaction.
            why: Why there is no score, for `reasons`.
            features: Its feature rows, the transaction's own last; None: not known.
        """
        if self.decision == "rules" and features is not None:
            codes, reasons = self.rules.decide(features.rows[-1:])
            decision = DECISIONS[int(codes[0])]
            said = [f"{why}: decided by rules", *reasons[0]]
            return request.without_model(decision, "rules", said)
        decision = "review" if self.decision == "rules" else self.decision
        return request.without_model(decision, "fallback", [f"{why}: decided by default"])
