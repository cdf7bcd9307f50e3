"""What lists and rules make of decisions: the same for a batch of the stream and for one request.

In this order, for each transaction:

1. on a `deny` list: declined, whatever the model says;
2. else on an `allow` list: approved, if it would be flagged otherwise;
3. else the strictest of the model, the rules that hold, and `review` for `watch` lists.

`decision_source` is `list` or `rules` where that decided, and stays the model's where it did not.
The score stays in the decision. Everything that holds is told among the reasons. The brakes come
before: people's lists and rules are not braked.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES, TransactionBatch
from flagger.features.hashing import hash_spans
from flagger.policy import APPROVE, DECISIONS, DECLINE, REVIEW
from flagger.reasons import Reason
from flagger.rulebook import Condition, EntityList, ListedRule, Rulebook
from flagger.rules import RULE_CODE

__all__ = ["LIST_CODE", "Overrule", "Overruler", "keys_of", "merged_reasons"]

LIST_CODE = "list"
"""Reason code of everything that a list says."""
_FEW = 8
"""Up to so many values, comparing with each is faster than searching among them."""
_AMOUNT = FEATURE_NAMES.index("amount")


@dataclass(slots=True)
class Overrule:
    """What lists and rules say about one transaction.

    Attributes:
        code: The decision's code now.
        source: `list` or `rules`; "": they changed nothing, only their reasons are added.
        reasons: Theirs.
        entries: Names of the lists and rules that hold.
    """

    code: int
    source: str = ""
    reasons: list[Reason] = field(default_factory=list)
    entries: list[str] = field(default_factory=list)


def merged_reasons(overrule: Overrule, others: list[Reason]) -> list[Reason]:
    """Return all reasons of a decision: first those of whoever decided.

    Args:
        overrule: What lists and rules say.
        others: The reasons that the decision had without them.
    """
    if overrule.code == APPROVE:
        return overrule.reasons
    if overrule.source:
        return overrule.reasons + others
    return others + overrule.reasons


def keys_of(values: list[str]) -> npt.NDArray[np.uint64]:
    """Return the keys of texts, uint64 [n], as `hashing.key_of` computes each."""
    encoded = [value.encode() for value in values]
    ends = np.cumsum([len(value) for value in encoded], dtype=np.int64)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[:-1]])
    data = np.frombuffer(b"".join(encoded) + b"\0", dtype=np.uint8)
    return hash_spans(data, starts, ends)


class _Values:
    """Values of one field, found by their keys."""

    def __init__(self, field_name: str, values: list[str], *, hashed: bool = False) -> None:
        self._field = field_name
        found = np.array([int(v, 16) for v in values], np.uint64) if hashed else keys_of(values)
        self._sorted = np.unique(found)

    def among(self, transactions: TransactionBatch) -> npt.NDArray[np.bool_]:
        """Return which transactions have one of the values, bool [n]."""
        found: npt.NDArray[np.bool_]
        keys = _keys(transactions, self._field)
        if len(self._sorted) <= _FEW:
            found = keys == self._sorted[0]
            for key in self._sorted[1:]:
                found |= keys == key
            return found
        places = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        found = self._sorted[places] == keys
        return found


def _keys(transactions: TransactionBatch, field_name: str) -> npt.NDArray[np.uint64]:
    if field_name == "customer_id":
        return transactions.customer_key
    if field_name == "terminal_id":
        return transactions.terminal_key
    keys: npt.NDArray[np.uint64] = transactions.category_keys[:, CATEGORY_FIELDS.index(field_name)]
    return keys


class _Test:
    """One condition, with its limits as float32 and its values as keys."""

    def __init__(self, condition: Condition) -> None:
        self._is_of_field = condition.field is not None
        if condition.field is not None:
            self._values = _Values(condition.field, condition.any_of or condition.none_of or [])
            self._wanted = condition.any_of is not None
        else:
            self._column = FEATURE_NAMES.index(condition.feature or "")
            self._bounds = condition.at_least, condition.below

    def holds(
        self, transactions: TransactionBatch, rows: npt.NDArray[np.float32] | None
    ) -> npt.NDArray[np.bool_]:
        """Return where it holds, bool [n]."""
        if self._is_of_field:
            among = self._values.among(transactions)
            return among if self._wanted else ~among
        if self._column == _AMOUNT:  # as it was sent: float32 knows no cents above 131,072
            return self._within(transactions.amount)
        if rows is None:
            return np.zeros(len(transactions), dtype=np.bool_)
        return self._within(rows[:, self._column])

    def _within(self, values: npt.NDArray[np.floating[Any]]) -> npt.NDArray[np.bool_]:
        at_least, below = self._bounds
        found: npt.NDArray[np.bool_] = ~np.isnan(values)
        if at_least is not None:
            found &= values >= values.dtype.type(at_least)
        if below is not None:
            found &= values < values.dtype.type(below)
        return found


class Overruler:
    """Applies one rulebook; made anew for each version of it.

    Attributes:
        rulebook: The lists and rules.
    """

    def __init__(self, rulebook: Rulebook) -> None:
        self.rulebook = rulebook
        self._lists = [
            (one, _Values(one.field, one.values, hashed=one.hashed)) for one in rulebook.lists
        ]
        self._rules = [(rule, [_Test(c) for c in rule.when]) for rule in rulebook.rules]

    def __bool__(self) -> bool:
        return bool(self._lists or self._rules)

    def judge(
        self,
        transactions: TransactionBatch,
        rows: npt.NDArray[np.float32] | None,
        codes: npt.NDArray[np.uint8],
    ) -> dict[int, Overrule]:
        """Return what lists and rules say, by row; only rows of which one holds are there.

        Args:
            transactions: n of them.
            rows: Their feature rows, float32 [n, F]; None: not known, then rules on features do
                not hold.
            codes: The decisions without lists and rules, uint8 [n].
        """
        wanted = codes.copy()
        by_rules = np.zeros(len(codes), dtype=np.uint8)
        found: dict[int, Overrule] = {}
        for rule, tests in self._rules:
            holds = np.ones(len(codes), dtype=np.bool_)
            for test in tests:
                holds &= test.holds(transactions, rows)
                if not holds.any():  # as most often
                    break
            by_rules[holds] = np.maximum(by_rules[holds], DECISIONS.index(rule.decision))
            self._note(found, holds, RULE_CODE, "rule", rule)
        np.maximum(wanted, by_rules, out=wanted)
        denied = np.zeros(len(codes), dtype=np.bool_)
        for one, values in self._of("watch"):
            holds = values.among(transactions)
            wanted[holds] = np.maximum(wanted[holds], REVIEW)
            self._note(found, holds, LIST_CODE, "list", one)
        for one, values in self._of("deny"):
            holds = values.among(transactions)
            denied |= holds
            self._note(found, holds, LIST_CODE, "list", one)
        for i, overrule in found.items():
            overrule.code = int(wanted[i])
            if wanted[i] > codes[i]:
                overrule.source = "rules" if by_rules[i] == wanted[i] else "list"
        for i in np.flatnonzero(denied).tolist():
            found[i].code, found[i].source = DECLINE, "list"
        self._allow(found, transactions, ~denied & (wanted != APPROVE))
        return found

    def _allow(
        self,
        found: dict[int, Overrule],
        transactions: TransactionBatch,
        flagged: npt.NDArray[np.bool_],
    ) -> None:
        """Approve what would be flagged and is on an `allow` list; the rest needs no list."""
        if not flagged.any():
            return
        allowed: dict[int, Overrule] = {}
        for one, values in self._of("allow"):
            self._note(allowed, values.among(transactions) & flagged, LIST_CODE, "list", one)
        for overrule in allowed.values():
            overrule.source = "list"
        found |= allowed

    def _of(self, action: str) -> list[tuple[EntityList, _Values]]:
        return [entry for entry in self._lists if entry[0].action == action]

    def _note(
        self,
        found: dict[int, Overrule],
        holds: npt.NDArray[np.bool_],
        code: str,
        kind: str,
        entry: EntityList | ListedRule,
    ) -> None:
        """Add an entry's reason to the rows where it holds."""
        places = np.flatnonzero(holds).tolist()
        if not places:
            return
        why = f": {entry.reason}" if entry.reason else ""
        reason = Reason(code, f"{kind} {entry.name}{why} (version {self.rulebook.version})")
        for i in places:
            overrule = found.setdefault(i, Overrule(APPROVE))
            overrule.reasons.append(reason)
            overrule.entries.append(entry.name)
