"""What is decided, kept for repeats, sent to the log and answered: the gateway's own formats."""

from __future__ import annotations

import hashlib
from typing import Annotated

import msgspec

from flagger.wire.messages import Decision, Transaction
from gateway.problems import Problem

__all__ = ["Answer", "BatchAnswer", "BatchItem", "Claim", "body_hash", "with_decision"]

_HASH_BYTES = 16
_JSON_SPACE = b" \t\r\n"


class Answer(msgspec.Struct, kw_only=True):
    """The decision about one transaction."""

    transaction_id: Annotated[str, msgspec.Meta(description="The id as it was sent.")]
    decision: Annotated[
        str,
        msgspec.Meta(
            description="What to do with the payment: let it through, hold it for a person, or "
            "refuse it.",
            extra_json_schema={"enum": ["approve", "review", "decline"]},
        ),
    ]
    decision_source: Annotated[
        str,
        msgspec.Meta(
            description="Who decided. `fallback`: the model or the history could not be asked "
            "within the deadline, and `reasons` says why.",
            extra_json_schema={"enum": ["model", "rules", "fallback", "list"]},
        ),
    ]
    score: Annotated[
        float | None,
        msgspec.Meta(description="Probability of fraud, 0 to 1; null where no model was asked."),
    ]
    reasons: Annotated[
        list[str],
        msgspec.Meta(
            description="Why it was flagged; for an approval, why a list approves what would be "
            "flagged, else empty."
        ),
    ]
    reason_codes: Annotated[
        list[str],
        msgspec.Meta(
            description="Codes of the reasons, in the same order; empty where the fallback decided."
        ),
    ]
    model: Annotated[str | None, msgspec.Meta(description="Model entry that scored it.")]
    model_version: Annotated[str | None, msgspec.Meta(description="Version of the model.")]
    policy_version: Annotated[str | None, msgspec.Meta(description="Version of the thresholds.")]
    latency_ms: Annotated[
        float, msgspec.Meta(description="Milliseconds from the request's arrival to the decision.")
    ]
    stages_ms: Annotated[
        dict[str, float] | msgspec.UnsetType,
        msgspec.Meta(description="Milliseconds by stage of this request, where `stages=1` asks."),
    ] = msgspec.UNSET

    @classmethod
    def of(cls, told: Decision | Claim, transaction_id: str) -> Answer:
        """Return the answer that tells what was decided about a transaction."""
        return cls(
            transaction_id=transaction_id,
            decision=told.decision,
            decision_source=told.decision_source,
            score=told.score,
            reasons=told.reasons,
            reason_codes=told.reason_codes,
            model=told.model or None,
            model_version=told.model_version or None,
            policy_version=told.policy_version or None,
            latency_ms=told.latency_ms,
        )


class BatchItem(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What came of one transaction of a batch: an answer or a problem."""

    status: Annotated[int, msgspec.Meta(description="The status it had had alone.", examples=[200])]
    answer: Answer | None = None
    problem: Problem | None = None


class BatchAnswer(msgspec.Struct, kw_only=True):
    """What came of a batch."""

    results: Annotated[
        list[BatchItem], msgspec.Meta(description="One for each transaction, in their order.")
    ]


class Claim(msgspec.Struct, array_like=True, frozen=True):
    """A decision as it is kept for repeats: what the transaction itself does not tell.

    Stored without ids: a repeat brings them along. New fields go to the end, with a default.

    Attributes:
        body_hash: `body_hash` of the transaction, 16 bytes.
        decision: See `flagger.wire.messages.Decision` for this and the following.
        terminal_id: The transaction's terminal; with `event_time_ms` what a label needs.
        event_time_ms: The transaction's time, epoch milliseconds.
        customer_key: The customer's 64-bit key; 0: stored by an earlier release.
    """

    body_hash: bytes
    decision: str
    decision_source: str
    score: float | None
    model: str
    model_version: str
    policy_version: str
    reasons: list[str]
    feature_hash: str
    latency_ms: float
    terminal_id: str = ""
    event_time_ms: int = 0
    reason_codes: list[str] = []
    customer_key: int = 0

    @classmethod
    def of(
        cls, decision: Decision, transaction: Transaction, body: bytes, customer_key: int
    ) -> Claim:
        """Return what to keep of a decision about a transaction with hash `body`."""
        return cls(
            body,
            decision.decision,
            decision.decision_source,
            decision.score,
            decision.model,
            decision.model_version,
            decision.policy_version,
            decision.reasons,
            decision.feature_hash,
            decision.latency_ms,
            transaction.terminal_id,
            transaction.event_time_ms,
            decision.reason_codes,
            customer_key,
        )

    def decision_on(self, transaction: Transaction) -> Decision:
        """Return the whole decision about the transaction that this was kept for."""
        return Decision(
            transaction_id=transaction.transaction_id,
            customer_id=transaction.customer_id,
            event_time=transaction.event_time_ms,
            amount=transaction.amount,
            decision=self.decision,
            decision_source=self.decision_source,
            score=self.score,
            model=self.model,
            model_version=self.model_version,
            policy_version=self.policy_version,
            reasons=self.reasons,
            reason_codes=self.reason_codes,
            feature_hash=self.feature_hash,
            latency_ms=self.latency_ms,
        )


def body_hash(transaction: Transaction) -> bytes:
    """Return 16 bytes that are equal for equal transactions, however their JSON is written."""
    t = transaction
    fields = (
        t.transaction_id,
        t.event_time_ms,
        t.customer_id,
        t.terminal_id,
        float(t.amount),
        t.currency,
        t.merchant_category,
        t.channel,
        t.country,
    )
    return hashlib.blake2b(msgspec.json.encode(fields), digest_size=_HASH_BYTES).digest()


def with_decision(raw: bytes, decision: Decision) -> bytes:
    """Return the caller's own JSON object with the decision added as its last member.

    Members that the contract does not know stay as they are.

    Args:
        raw: A JSON object that `parse_transaction` has accepted: it has members, so a comma fits.
        decision: The decision.

    >>> d = Decision(transaction_id="t", customer_id="c", event_time=1, amount=2.0,
    ...              decision="approve", decision_source="model")
    >>> with_decision(b'{"transaction_id":"t","mine":1} ', d)[:42]
    b'{"transaction_id":"t","mine":1,"decision":'
    """
    return b'%b,"decision":%b}' % (raw.rstrip(_JSON_SPACE)[:-1], msgspec.json.encode(decision))
