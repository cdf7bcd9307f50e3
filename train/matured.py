"""How good the decisions were, by labels, on the days whose labels have come.

A label comes late: analysts take days, chargebacks weeks. So a day is judged once it is
`maturity_days` old, counted from the newest decision. Then

- a labelled transaction is what its latest label says;
- an unlabelled one of a day with labels was genuine: nobody complained in time;
- a day without any label is not judged at all: it had no labels, not no fraud.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.features.hashing import key_of
from flagger.policy import APPROVE, DECISIONS, DECLINE
from flagger.state.records import DAY_MS
from flagger.wire.messages import Label

__all__ = [
    "DayOutcome",
    "Decided",
    "DecisionFields",
    "Totals",
    "judge_days",
    "read_decisions",
    "read_labels",
    "total",
]

_EPOCH = date(1970, 1, 1)


class DecisionFields(msgspec.Struct, gc=False):
    """What is needed of a decision."""

    transaction_id: str
    event_time: int
    decision: str
    model_version: str = ""


@dataclass(frozen=True)
class Decided:
    """Decisions as columns.

    Attributes:
        key: Keys of the transaction ids, uint64 [n].
        day: Days since 1970 of the transactions, int32 [n].
        code: Decision codes, uint8 [n].
        version: Place in `versions` of the model version, int16 [n].
        versions: Model versions; "" where no model decided.
    """

    key: npt.NDArray[np.uint64]
    day: npt.NDArray[np.int32]
    code: npt.NDArray[np.uint8]
    version: npt.NDArray[np.int16]
    versions: list[str]


@dataclass(frozen=True)
class Totals:
    """Counts of judged transactions.

    Attributes:
        decisions: All.
        flagged: Reviews and declines.
        declined: Declines.
        labelled: With a label.
        frauds: By label.
        caught: Frauds that were flagged.
        declined_frauds: Frauds that were declined.
    """

    decisions: int = 0
    flagged: int = 0
    declined: int = 0
    labelled: int = 0
    frauds: int = 0
    caught: int = 0
    declined_frauds: int = 0

    @property
    def precision(self) -> float:
        """Share of frauds among the flagged; NaN: nothing was flagged."""
        return self.caught / self.flagged if self.flagged else math.nan

    @property
    def recall(self) -> float:
        """Share of the frauds that were flagged; NaN: there was no fraud."""
        return self.caught / self.frauds if self.frauds else math.nan


@dataclass(frozen=True)
class DayOutcome:
    """One day.

    Attributes:
        day: In UTC, of the transactions.
        state: `judged`, `too young`, or `no labels`.
        totals: Counts; outcomes are 0 unless the day is judged.
    """

    day: date
    state: str
    totals: Totals


def read_decisions(pieces: Iterable[list[bytes]]) -> Decided:
    """Read the values of the decisions topic; what is no decision is passed over."""
    decoder = msgspec.json.Decoder(DecisionFields)
    keys: list[int] = []
    days: list[int] = []
    codes: list[int] = []
    places: list[int] = []
    versions: dict[str, int] = {}
    for values in pieces:
        for value in values:
            try:
                decision = decoder.decode(value)
                code = DECISIONS.index(decision.decision)
            except (msgspec.MsgspecError, ValueError):
                continue
            keys.append(key_of(decision.transaction_id))
            days.append(decision.event_time // DAY_MS)
            codes.append(code)
            places.append(versions.setdefault(decision.model_version, len(versions)))
    return Decided(
        np.array(keys, dtype=np.uint64),
        np.array(days, dtype=np.int32),
        np.array(codes, dtype=np.uint8),
        np.array(places, dtype=np.int16),
        list(versions),
    )


def read_labels(pieces: Iterable[list[bytes]]) -> dict[int, bool]:
    """Read the values of the labels topic: key of the transaction id -> is it fraud.

    The latest label of a transaction counts. What is no label is passed over: the streamer has put
    it among the dead letters.
    """
    decoder = msgspec.json.Decoder(Label)
    found: dict[int, bool] = {}
    for values in pieces:
        for value in values:
            try:
                label = decoder.decode(value)
            except msgspec.MsgspecError:
                continue
            found[key_of(label.transaction_id)] = label.is_fraud
    return found


def judge_days(
    decided: Decided, labels: dict[int, bool], maturity_days: int, version: str | None = None
) -> list[DayOutcome]:
    """Return each day's outcome, the oldest first.

    Args:
        decided: All decisions.
        labels: From `read_labels`.
        maturity_days: A day is judged once the newest decision is so many days younger.
        version: Only the decisions of this model version; None: all.
    """
    if not len(decided.day):
        return []
    newest = int(decided.day.max())
    is_labelled = np.fromiter((k in labels for k in decided.key.tolist()), bool, len(decided.key))
    is_fraud = np.fromiter(
        (labels.get(k, False) for k in decided.key.tolist()), bool, len(decided.key)
    )
    mine = np.ones(len(decided.key), dtype=np.bool_)
    if version is not None:
        place = decided.versions.index(version) if version in decided.versions else -1
        mine = decided.version == place
    outcomes = []
    for number in np.unique(decided.day).tolist():
        of_day = decided.day == number
        # Labels of all versions say whether the day has any.
        labelled = int((is_labelled & of_day).sum())
        chosen = np.flatnonzero(of_day & mine)
        if not len(chosen):
            continue
        state = "judged" if labelled else "no labels"
        if newest - number < maturity_days:
            state = "too young"
        outcome = is_fraud[chosen] if state == "judged" else np.zeros(len(chosen), dtype=np.bool_)
        totals = _counted(decided.code[chosen], outcome, int(is_labelled[chosen].sum()))
        outcomes.append(DayOutcome(_EPOCH + timedelta(days=number), state, totals))
    return outcomes


def total(outcomes: Iterable[DayOutcome]) -> Totals:
    """Return the sum of the judged days."""
    judged = [outcome.totals for outcome in outcomes if outcome.state == "judged"]
    names = Totals.__dataclass_fields__
    return Totals(**{name: sum(getattr(t, name) for t in judged) for name in names})


def _counted(
    codes: npt.NDArray[np.uint8], is_fraud: npt.NDArray[np.bool_], labelled: int
) -> Totals:
    flagged = codes != APPROVE
    return Totals(
        decisions=len(codes),
        flagged=int(flagged.sum()),
        declined=int((codes == DECLINE).sum()),
        labelled=labelled,
        frauds=int(is_fraud.sum()),
        caught=int((flagged & is_fraud).sum()),
        declined_frauds=int((is_fraud & (codes == DECLINE)).sum()),
    )
