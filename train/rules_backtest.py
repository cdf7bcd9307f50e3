"""Lists and rules on history: what they would have changed, before they are put in force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from flagger.features import DUPLICATE, FeatureContract
from flagger.overrules import Overruler
from flagger.policy import APPROVE, DECISIONS
from train.replay import Replay
from train.sources import to_batch

__all__ = ["Backtest", "Decide", "EntryResult", "Tally", "approve_all", "backtest"]

_CHUNK_ROWS = 65_536
Decide = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.uint8]]
"""From feature rows, float32 [n, F], to the decision codes without lists and rules, uint8 [n]."""


@dataclass
class Tally:
    """Decisions counted; frauds and genuine ones where the outcome is known.

    Attributes:
        decisions: By code, int64 [3].
        frauds: The known frauds among them, int64 [3].
        genuine: The known genuine ones, int64 [3].
        fraud_amount: Amounts of the known frauds, float64 [3].
    """

    decisions: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    frauds: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    genuine: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(3, dtype=np.int64))
    fraud_amount: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(3))

    def add(
        self,
        codes: npt.NDArray[np.uint8],
        known: npt.NDArray[np.bool_],
        is_fraud: npt.NDArray[np.bool_],
        amounts: npt.NDArray[np.float64],
    ) -> None:
        """Count n decisions."""
        fraud = known & is_fraud
        self.decisions += np.bincount(codes, minlength=3)
        self.frauds += np.bincount(codes[fraud], minlength=3)
        self.genuine += np.bincount(codes[known & ~is_fraud], minlength=3)
        self.fraud_amount += np.bincount(codes[fraud], weights=amounts[fraud], minlength=3)

    @property
    def precision(self) -> float | None:
        """Share of frauds among what was flagged and has an outcome; None: there is none."""
        frauds, genuine = self.frauds[1:].sum(), self.genuine[1:].sum()
        return float(frauds / (frauds + genuine)) if frauds + genuine else None

    @property
    def recall(self) -> float | None:
        """Share of the frauds that was flagged; None: there is no known fraud."""
        frauds = self.frauds.sum()
        return float(self.frauds[1:].sum() / frauds) if frauds else None

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "decisions": dict(zip(DECISIONS, self.decisions.tolist(), strict=True)),
            "frauds": dict(zip(DECISIONS, self.frauds.tolist(), strict=True)),
            "genuine": dict(zip(DECISIONS, self.genuine.tolist(), strict=True)),
            "precision": self.precision,
            "recall": self.recall,
            "fraud_amount_caught": float(self.fraud_amount[1:].sum()),
        }


@dataclass
class EntryResult:
    """What one list or rule does.

    Attributes:
        name: Its name.
        holds: Transactions for which it holds; of an `allow` list only those that would be flagged.
        changes: Those of them whose decision is another with all lists and rules.
        frauds: Known frauds among those for which it holds.
        genuine: Known genuine ones.
    """

    name: str
    holds: int = 0
    changes: int = 0
    frauds: int = 0
    genuine: int = 0

    @property
    def precision(self) -> float | None:
        """Share of frauds where it holds and the outcome is known; None: it is nowhere known."""
        known = self.frauds + self.genuine
        return self.frauds / known if known else None


@dataclass
class Backtest:
    """What came of it.

    Attributes:
        version: Of the lists and rules.
        before: Decisions without them.
        after: Decisions with them.
        moves: How many went from a decision (row) to another (column), int64 [3, 3].
        entries: Each list and rule, in the file's order.
    """

    version: str
    before: Tally
    after: Tally
    moves: npt.NDArray[np.int64]
    entries: list[EntryResult]

    @property
    def changed(self) -> int:
        """Transactions with another decision."""
        return int(self.moves.sum() - np.trace(self.moves))

    def to_dict(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {
            "version": self.version,
            "changed": self.changed,
            "moves": {
                a: dict(zip(DECISIONS, row, strict=True))
                for a, row in zip(DECISIONS, self.moves.tolist(), strict=True)
            },
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "entries": [
                {
                    "name": entry.name,
                    "holds": entry.holds,
                    "changes": entry.changes,
                    "frauds": entry.frauds,
                    "genuine": entry.genuine,
                    "precision": entry.precision,
                }
                for entry in self.entries
            ],
        }


def backtest(
    table: pa.Table,
    overruler: Overruler,
    contract: FeatureContract,
    decide: Decide,
    *,
    from_ms: int = 0,
) -> Backtest:
    """Replay history and decide it without and with lists and rules.

    Args:
        table: Transactions in `SCHEMA`, in event-time order.
        overruler: Lists and rules.
        contract: Vocabularies and label delay.
        decide: The decisions without them.
        from_ms: Transactions before this time only feed the features, epoch milliseconds.
    """
    rulebook = overruler.rulebook
    names = [one.name for one in rulebook.lists] + [one.name for one in rulebook.rules]
    entries = {name: EntryResult(name) for name in names}
    result = Backtest(
        rulebook.version, Tally(), Tally(), np.zeros((3, 3), np.int64), list(entries.values())
    )
    history = Replay(contract)
    for chunk in table.to_batches(max_chunksize=_CHUNK_ROWS):
        known = chunk.column("is_fraud").is_valid().to_numpy(zero_copy_only=False)
        outcomes = pc.fill_null(chunk.column("is_fraud"), False).to_numpy(zero_copy_only=False)
        transactions = to_batch(chunk)
        features = history.advance(transactions, outcomes)
        chosen = np.flatnonzero(
            (features.flags & DUPLICATE == 0) & (transactions.event_time_ms >= from_ms)
        )
        if not len(chosen):
            continue
        rows = features.rows[chosen]
        facts = known[chosen], outcomes[chosen]
        _count(result, entries, overruler, (transactions.take(chosen), rows, decide(rows)), facts)
    return result


def _count(
    result: Backtest,
    entries: dict[str, EntryResult],
    overruler: Overruler,
    decided: tuple[Any, npt.NDArray[np.float32], npt.NDArray[np.uint8]],
    facts: tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]],
) -> None:
    """Count one chunk: transactions, rows and codes before; what is known and what is fraud."""
    transactions, rows, before = decided
    known, is_fraud = facts
    after = before.copy()
    found = overruler.judge(transactions, rows, before)
    for row, overrule in found.items():
        after[row] = overrule.code
        for name in overrule.entries:
            entry = entries[name]
            entry.holds += 1
            entry.changes += int(after[row] != before[row])
            entry.frauds += int(known[row] and is_fraud[row])
            entry.genuine += int(known[row] and not is_fraud[row])
    result.before.add(before, known, is_fraud, transactions.amount)
    result.after.add(after, known, is_fraud, transactions.amount)
    np.add.at(result.moves, (before, after), 1)


def approve_all(rows: npt.NDArray[np.float32]) -> npt.NDArray[np.uint8]:
    """Return approvals, uint8 [n]: what lists and rules do without a model."""
    return np.full(len(rows), APPROVE, dtype=np.uint8)
