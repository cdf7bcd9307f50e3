"""Lists and rules beside the model, for one request: the same verdict as in the stream."""

from __future__ import annotations

import asyncio

import numpy as np

from flagger.features import FeatureRows, TransactionBatch
from flagger.live import FOLLOW_INTERVAL_S
from flagger.live_rulebook import LiveRulebook
from flagger.overrules import Overruler, merged_reasons
from flagger.policy import DECISIONS
from flagger.reasons import Reason
from flagger.rules import RULE_CODE
from flagger.wire.messages import Decision

__all__ = ["follow_rulebook", "overrule_decision"]


def overrule_decision(
    decision: Decision,
    overruler: Overruler,
    transaction: TransactionBatch,
    features: FeatureRows | None,
) -> None:
    """Change a decision to what lists and rules say about its transaction.

    Args:
        decision: Gets decision, source and reasons.
        overruler: Lists and rules.
        transaction: The transaction, 1 row.
        features: Its feature rows, the transaction's own last; None: the history is not known,
            and rules on features do not hold.
    """
    if not overruler:
        return
    codes = np.array([DECISIONS.index(decision.decision)], dtype=np.uint8)
    rows = None if features is None else features.rows[-1:]
    overrule = overruler.judge(transaction, rows, codes).get(0)
    if overrule is None:
        return
    source = RULE_CODE if decision.decision_source == "rules" else decision.decision_source
    given = decision.reason_codes or [source] * len(decision.reasons)  # no model, no codes
    others = [Reason(code, text) for code, text in zip(given, decision.reasons, strict=True)]
    reasons = merged_reasons(overrule, others)
    decision.decision = DECISIONS[overrule.code]
    decision.decision_source = overrule.source or decision.decision_source
    decision.reasons = [reason.text for reason in reasons]
    decision.reason_codes = [reason.code for reason in reasons]


async def follow_rulebook(rulebook: LiveRulebook) -> None:
    """Refresh lists and rules for ever; files are read in a thread."""
    while True:
        await asyncio.sleep(FOLLOW_INTERVAL_S)
        await asyncio.to_thread(rulebook.refresh)
