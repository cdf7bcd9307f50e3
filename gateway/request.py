"""One scoring request: what was sent, as the core needs it, and the decisions made about it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from flagger.errors import BadMessageError
from flagger.features import FeatureRows, TransactionBatch
from flagger.policy import DECISIONS
from flagger.wire.decode import transaction_keys
from flagger.wire.messages import Decision, Transaction, parse_transaction
from gateway.answers import Claim, body_hash
from gateway.deadline import Deadline, Stopwatch
from gateway.live import Serving
from gateway.problems import ProblemError

__all__ = ["ScoringRequest", "batch_of"]


def batch_of(transaction: Transaction) -> TransactionBatch:
    """Return the transaction as a batch of one row."""
    columns = np.array(transaction_keys(transaction), dtype=np.uint64)
    return TransactionBatch(
        transaction_key=columns[0:1],
        customer_key=columns[1:2],
        terminal_key=columns[2:3],
        event_time_ms=np.array([transaction.event_time_ms], dtype=np.int64),
        amount=np.array([transaction.amount], dtype=np.float64),
        category_keys=columns[3:].reshape(1, -1),
    )


@dataclass(frozen=True, slots=True)
class ScoringRequest:
    """One transaction on its way through the gateway.

    Attributes:
        raw: The JSON body as it came.
        transaction: The same, read and checked.
        batch: The same as columns, 1 row.
        body_hash: Equal for equal transactions; see `answers.body_hash`.
        deadline: The request's budget.
        stopwatch: Takes the times of the stages.
    """

    raw: bytes
    transaction: Transaction
    batch: TransactionBatch
    body_hash: bytes
    deadline: Deadline
    stopwatch: Stopwatch

    @property
    def key(self) -> int:
        """The transaction's 64-bit key."""
        return int(self.batch.transaction_key[0])

    @property
    def customer_key(self) -> int:
        """The customer's 64-bit key."""
        return int(self.batch.customer_key[0])

    def claim_of(self, decision: Decision) -> Claim:
        """Return what is kept of a decision about this transaction."""
        return Claim.of(decision, self.transaction, self.body_hash, self.customer_key)

    @classmethod
    def parse(
        cls, raw: bytes, now_ms: int, deadline: Deadline, stopwatch: Stopwatch
    ) -> ScoringRequest:
        """Read the body.

        Args:
            raw: The JSON body.
            now_ms: The current time, epoch milliseconds.
            deadline: The request's budget.
            stopwatch: Takes the time of this.

        Raises:
            ProblemError: 422, with field and reason.
        """
        try:
            transaction = parse_transaction(raw, now_ms)
        except BadMessageError as error:
            raise ProblemError.of_message(error) from error
        if transaction.decision is not None:
            # The streamer trusts a decision in the log, so only the gateway may put one there.
            raise ProblemError(
                "bad_transaction", field="decision", reason="is made here; leave it out"
            )
        hashed = body_hash(transaction)
        request = cls(raw, transaction, batch_of(transaction), hashed, deadline, stopwatch)
        stopwatch.lap("parse")
        return request

    def decided(self, serving: Serving, score: float, features: FeatureRows) -> Decision:
        """Return the decision that the policy makes of the score of the last row."""
        code = int(serving.policy.decide(np.array([score], dtype=np.float32))[0])
        return Decision(
            transaction_id=self.transaction.transaction_id,
            customer_id=self.transaction.customer_id,
            event_time=self.transaction.event_time_ms,
            amount=self.transaction.amount,
            decision=DECISIONS[code],
            decision_source="model",
            score=score,
            model=serving.model.name,
            model_version=serving.model.version,
            policy_version=serving.policy.version,
            reasons=serving.policy.reason(score, code),
            feature_hash=f"{int(features.hashes()[-1]):016x}",
            latency_ms=round(self.deadline.elapsed_ms, 3),
        )

    def without_model(self, decision: str, source: str, reasons: list[str]) -> Decision:
        """Return a decision that was made without a score."""
        return Decision(
            transaction_id=self.transaction.transaction_id,
            customer_id=self.transaction.customer_id,
            event_time=self.transaction.event_time_ms,
            amount=self.transaction.amount,
            decision=decision,
            decision_source=source,
            reasons=reasons,
            latency_ms=round(self.deadline.elapsed_ms, 3),
        )
