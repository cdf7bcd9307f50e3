"""The case store's contract, the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy import Engine

from flagger.alert import Alert
from flagger.errors import CaseStoreError
from review.life import MAX_NOTE, Analyst, CaseLife
from review.queries import CaseQueries, Filter
from review.store import CaseStore, Flag
from review.tables import State

NOW_MS = 1_790_000_000_000
CLAIM_MS = 900_000
ANN, BOB, LEAD = Analyst("ann"), Analyst("bob"), Analyst("lea", "lead")
MakeFlag = Callable[..., Flag]


class Clock:
    now_ms = NOW_MS

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(engine: Engine) -> CaseStore:
    return CaseStore(engine)


@pytest.fixture
def life(engine: Engine, clock: Clock) -> CaseLife:
    return CaseLife(engine, clock, CLAIM_MS)


@pytest.fixture
def queries(engine: Engine, clock: Clock) -> CaseQueries:
    return CaseQueries(engine, clock)


def state(queries: CaseQueries, transaction_id: str = "t1") -> str:
    case = queries.find(transaction_id)
    assert case is not None
    return case.state


def test_a_repeated_flag_changes_nothing(
    store: CaseStore, life: CaseLife, queries: CaseQueries, flag: MakeFlag
) -> None:
    first = store.add([flag(1), flag(2)], NOW_MS)
    life.act("claim", ["t1"], ANN)
    again = store.add([flag(1, amount=9.0), flag(3)], NOW_MS + 5)
    assert (first.new, again.new, again.repeats) == (2, 1, 1)
    case = queries.find("t1")
    assert case is not None
    assert (case.amount, case.state, case.stored_at_ms) == (100.0, State.CLAIMED, NOW_MS)


def test_the_same_flag_twice_in_one_batch_is_one_case(store: CaseStore, flag: MakeFlag) -> None:
    stored = store.add([flag(1), flag(1)], NOW_MS)
    assert (stored.new, stored.repeats) == (1, 1)


def test_a_case_has_every_word_of_its_alert(
    store: CaseStore, queries: CaseQueries, flag: MakeFlag
) -> None:
    odd = flag(1, terminal_id="m\"1'; --", reasons=["çà\n—"], score=None, channel=None)
    store.add([odd], NOW_MS)
    case = queries.find("t1")
    assert case is not None
    for name in set(Alert.__struct_fields__) - {"event_time", "latency_ms", "feature_hash"}:
        assert getattr(case, name) == getattr(odd.alert, name), name
    assert case.event_time_ms == odd.alert.event_time


def test_what_the_database_cannot_hold_does_not_stop_the_rest(
    store: CaseStore, flag: MakeFlag
) -> None:
    stored = store.add([flag(1), flag(2, event_time=2**70), flag(3)], NOW_MS)
    assert (stored.new, stored.refused) == (2, 1)
    nul = store.add([flag(4), flag(5, transaction_id="t\0"), flag(6)], NOW_MS)  # no text there
    assert nul.new + nul.refused == 3
    assert nul.new >= 2


def test_the_queue_is_in_order_of_expected_loss(
    store: CaseStore, queries: CaseQueries, flag: MakeFlag
) -> None:
    flags = [
        flag(1, score=0.9, amount=10.0),
        flag(2, score=0.5, amount=400.0),
        flag(3, score=None, amount=500.0),  # nobody scored it: one in ten
        flag(4, score=None, amount=150.0, decision="decline", decision_source="list"),
    ]
    store.add(flags, NOW_MS)
    page = queries.page(Filter())
    assert [case.transaction_id for case in page.cases] == ["t2", "t4", "t3", "t1"]
    assert (page.count, page.amount) == (4, 1060.0)
    assert page.expected_loss == pytest.approx(9 + 200 + 50 + 150)


def test_filters(store: CaseStore, life: CaseLife, queries: CaseQueries, flag: MakeFlag) -> None:
    store.add(
        [
            flag(1, decision="decline", channel="atm"),
            flag(2, country="FR", amount=999.0),
            flag(3, channel=None, customer_id="x%_1"),
            flag(4),
        ],
        NOW_MS,
    )
    life.act("claim", ["t4"], ANN)

    def found(**values: object) -> set[str]:
        cases = queries.page(Filter(**values)).cases  # type: ignore[arg-type]
        return {case.transaction_id for case in cases}

    assert found(decisions=("decline",)) == {"t1"}
    assert found(channels=("unknown", "atm")) == {"t1", "t3"}
    assert found(countries=("FR",)) == {"t2"}
    assert found(min_amount=500.0) == {"t2"}
    assert found(text="x%_") == {"t3"}
    assert found(text="%") == set()
    assert found(view="mine", analyst="ann") == {"t4"}
    assert found(view="open") == {"t1", "t2", "t3", "t4"}
    assert queries.choices() == (["atm", "ecom", "unknown"], ["DE", "FR"])


def test_one_analyst_at_a_time_until_the_claim_runs_out(
    store: CaseStore, life: CaseLife, queries: CaseQueries, clock: Clock, flag: MakeFlag
) -> None:
    store.add([flag(1)], NOW_MS)
    assert life.act("claim", ["t1"], ANN).done == ["t1"]
    for action in ("claim", "confirm", "dismiss", "escalate", "release"):
        assert life.act(action, ["t1"], LEAD).done == []
    assert life.act("claim", ["t1"], BOB).refused == {"t1": "ann is working on it"}
    clock.now_ms += CLAIM_MS
    assert life.act("claim", ["t1"], BOB).done == ["t1"]
    clock.now_ms += CLAIM_MS
    assert life.release_expired() == 1
    assert state(queries) == State.NEW
    trail = [(e.who, e.action, e.from_state, e.to_state) for e in queries.events("t1")]
    assert trail == [
        ("system", "expire", "claimed", "new"),
        ("bob", "claim", "claimed", "claimed"),
        ("ann", "claim", "new", "claimed"),
    ]


def test_of_many_who_claim_at_once_one_succeeds(
    engine: Engine, store: CaseStore, queries: CaseQueries, flag: MakeFlag
) -> None:
    ids = [f"t{i}" for i in range(20)]
    store.add([flag(i) for i in range(20)], NOW_MS)
    names = [f"analyst{i}" for i in range(6)]
    start = threading.Barrier(len(names))
    done: dict[str, list[str]] = {}

    def work(name: str) -> None:
        start.wait()
        life = CaseLife(engine, lambda: NOW_MS, CLAIM_MS)
        done[name] = life.act("claim", ids, Analyst(name)).done

    threads = [threading.Thread(target=work, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(i for claimed in done.values() for i in claimed) == sorted(ids)
    for name, claimed in done.items():
        for i in claimed:
            case = queries.find(i)
            assert case is not None
            assert case.claimed_by == name
            assert len(queries.events(i)) == 1


def test_a_decision_writes_its_label_with_it(
    store: CaseStore, life: CaseLife, queries: CaseQueries, clock: Clock, flag: MakeFlag
) -> None:
    store.add([flag(1), flag(2)], NOW_MS)
    clock.now_ms += 60_000
    assert life.act("confirm", ["t1"], ANN, "the customer did not pay this").done == ["t1"]
    assert life.act("dismiss", ["t1"], BOB).refused == {"t1": "already confirmed as fraud by ann"}
    life.act("dismiss", ["t2"], BOB)
    labels = store.waiting_labels(10)
    assert [(la.transaction_id, la.is_fraud, la.terminal_id) for la in labels] == [
        ("t1", True, "m1"),
        ("t2", False, "m1"),
    ]
    assert labels[0].labelled_at_ms == clock.now_ms
    assert labels[0].event_time_ms == NOW_MS
    case = queries.find("t1")
    assert case is not None
    assert (case.decided_by, case.decided_at_ms, case.first_seen_at_ms) == (
        "ann",
        clock.now_ms,
        clock.now_ms,
    )
    assert queries.events("t1")[0].note == "the customer did not pay this"
    store.mark_sent([labels[0].id], clock.now_ms)
    assert [la.transaction_id for la in store.waiting_labels(10)] == ["t2"]
    assert store.count_waiting_labels() == 1


def test_escalated_cases_are_the_leads(
    store: CaseStore, life: CaseLife, queries: CaseQueries, clock: Clock, flag: MakeFlag
) -> None:
    store.add([flag(1)], NOW_MS)
    assert life.act("escalate", ["t1"], ANN).done == ["t1"]
    assert life.act("confirm", ["t1"], ANN).refused == {"t1": "it is escalated: a lead decides"}
    assert life.act("claim", ["t1"], LEAD).done == ["t1"]
    clock.now_ms += CLAIM_MS
    life.release_expired()
    assert state(queries) == State.ESCALATED
    assert life.act("dismiss", ["t1"], LEAD).done == ["t1"]
    assert life.act("reopen", ["t1"], ANN).refused == {"t1": "only lea or a lead may reopen it"}
    assert life.act("reopen", ["t1"], LEAD).done == ["t1"]
    assert state(queries) == State.ESCALATED
    life.act("confirm", ["t1"], LEAD)
    assert [label.is_fraud for label in store.waiting_labels(9)] == [False, True]


def test_bulk_actions_do_what_they_can(store: CaseStore, life: CaseLife, flag: MakeFlag) -> None:
    store.add([flag(1), flag(2), flag(3)], NOW_MS)
    life.act("claim", ["t2"], BOB)
    outcome = life.act("dismiss", ["t1", "t2", "t3", "t9"], ANN)
    assert outcome.done == ["t1", "t3"]
    assert set(outcome.refused) == {"t2", "t9"}
    too_long = life.act("claim", ["t2"], BOB, "x" * (MAX_NOTE + 1))
    assert not too_long.done


def test_notes_and_first_look(
    store: CaseStore, life: CaseLife, queries: CaseQueries, clock: Clock, flag: MakeFlag
) -> None:
    store.add([flag(1)], NOW_MS)
    life.seen("t1")
    clock.now_ms += 5
    life.seen("t1")
    life.note("t1", ANN, " called the customer ")
    case = queries.find("t1")
    assert case is not None
    assert case.first_seen_at_ms == NOW_MS
    assert [(e.action, e.note) for e in queries.events("t1")] == [("note", "called the customer")]
    with pytest.raises(ValueError, match="1 to"):
        life.note("t1", ANN, "  ")
    with pytest.raises(CaseStoreError, match="no case t9"):
        life.note("t9", ANN, "hello")


def test_history_and_similar_cases(
    store: CaseStore, life: CaseLife, queries: CaseQueries, flag: MakeFlag
) -> None:
    store.add(
        [
            flag(1),
            flag(2, age_ms=5_000, terminal_id="m2"),
            flag(3, age_ms=9_000, customer_id="c2"),
            flag(4, customer_id="c3", terminal_id="m3", reason_codes=["score", "country"]),
            flag(
                5,
                customer_id="c4",
                terminal_id="m4",
                channel="atm",
                country="US",
                merchant_category=None,
            ),
        ],
        NOW_MS,
    )
    life.act("dismiss", ["t3", "t4", "t5"], ANN)
    case = queries.find("t1")
    assert case is not None
    assert [c.transaction_id for c in queries.history(case, "customer")] == ["t2"]
    assert [c.transaction_id for c in queries.history(case, "terminal")] == ["t3"]
    similar = queries.similar(case)
    assert [s.case.transaction_id for s in similar] == [
        "t3",
        "t4",
    ]  # t2 is undecided, t5 shares no place
    assert similar[0].likeness == 1.0
    assert similar[1].likeness == pytest.approx(0.5)
