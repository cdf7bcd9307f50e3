"""A customer's later requests count the earlier ones, before the streamer does, on any replica."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
import valkey

from flagger.features import FEATURE_NAMES, FeatureEngine
from flagger.features.engine import LogPositions
from flagger.state.store import StateStore
from flagger.wire.messages import Transaction
from gateway import pending as pending_module
from gateway import state as state_module
from gateway.request import batch_of

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
COUNT = FEATURE_NAMES.index("customer_count")
COUNT_1H = FEATURE_NAMES.index("customer_count_1h")
SUM_1H = FEATURE_NAMES.index("customer_amount_sum_1h")


def counts_of(gateway: Any, column: int = COUNT) -> list[int]:
    return [int(rows[0, column]) for rows in gateway.scorer.rows]


async def test_parallel_requests_on_two_replicas_count_each_other_once(
    start_gateway: Any, body: Body
) -> None:
    async with (
        start_gateway(gateway_max_in_flight=200) as one,
        start_gateway(gateway_max_in_flight=200) as other,
    ):
        one.scorer.delay_s = other.scorer.delay_s = 0.01
        bodies = [body(transaction_id=f"t-{i}", amount=1.0) for i in range(200)]
        random.Random(1).shuffle(bodies)
        responses = await asyncio.gather(
            *((one, other)[i % 2].post(sent) for i, sent in enumerate(bodies))
        )
        assert {r.status_code for r in responses} == {200}
        assert {r.json()["decision_source"] for r in responses} == {"model"}
        assert sorted(counts_of(one) + counts_of(other)) == list(range(200))
        assert sorted(counts_of(one, COUNT_1H) + counts_of(other, COUNT_1H)) == list(range(200))
        assert sorted(counts_of(one, SUM_1H) + counts_of(other, SUM_1H)) == list(range(200))
        assert len(one.log.messages) + len(other.log.messages) == 200


@pytest.mark.parametrize(("customer", "counted"), [("same", 1), ("other", 0)])
async def test_a_refused_second_body_of_an_id_takes_no_place_from_the_first(
    gateway: Any, body: Body, customer: str, counted: int
) -> None:
    """Both are accepted at once: of one customer they share a place, of two the loser's goes."""
    gateway.scorer.delay_s = 0.02
    first, second = body(transaction_id="t-1", customer_id="same"), body(transaction_id="t-1")
    second |= {"customer_id": customer, "amount": 99.0}
    statuses = [r.status_code for r in await asyncio.gather(*map(gateway.post, (first, second)))]
    assert sorted(statuses) == [200, 409]
    loser = (first, second)[statuses.index(409)]["customer_id"]
    seen = {}
    for name in {"same", customer}:
        await gateway.post(body(transaction_id=f"next-{name}", customer_id=name))
        seen[name] = int(gateway.scorer.rows[-1][0, COUNT])
    assert seen[loser] == counted
    assert sum(seen.values()) == 1


async def test_what_the_record_includes_is_not_counted_twice(
    gateway: Any, body: Body, empty_valkey: str, engine: FeatureEngine
) -> None:
    """The streamer writes the record after each prefix of the log; the count never changes."""
    store = StateStore(empty_valkey)
    for i in range(30):
        await gateway.post(body(transaction_id=f"t-{i}"))
    logged = gateway.log.decoded()
    for i, transaction in enumerate(logged):
        positions = LogPositions(np.zeros(1, dtype=np.int16), np.full(1, i, dtype=np.int64))
        engine.process(batch_of(transaction), positions)
        if i % 7 in (0, 6) or i == 29:
            store.write("customer", engine.customers.take_dirty())
            seen = await gateway.state.admit(probe(body, f"after-{i}"), 1_000)
            batch = seen.pending.followed_by(probe(body, f"after-{i}"))
            row = engine.process_detached(batch, seen.customers, seen.terminals).rows[-1]
            await gateway.state.forget(probe(body, f"after-{i}"), 1_000)
            assert row[COUNT] == 30
    assert len(seen.pending.before) == 0
    store.close()


def probe(body: Body, transaction_id: str) -> Any:
    return batch_of(msgspec.convert(body(transaction_id=transaction_id), Transaction))


async def test_entries_that_the_record_includes_are_removed(
    gateway: Any, body: Body, empty_valkey: str, engine: FeatureEngine
) -> None:
    for i in range(5):
        await gateway.post(body(transaction_id=f"t-{i}"))
    client: Any = valkey.Valkey.from_url(empty_valkey)
    (key,) = client.keys("ff:p:*")
    assert client.hlen(key) == 6  # with the last place given
    assert b"planted" not in b"".join(client.hvals(key)) + key
    for i, transaction in enumerate(gateway.log.decoded()):
        positions = LogPositions(np.zeros(1, dtype=np.int16), np.full(1, i, dtype=np.int64))
        engine.process(batch_of(transaction), positions)
    store = StateStore(empty_valkey)
    store.write("customer", engine.customers.take_dirty())
    store.close()
    await gateway.post(body(transaction_id="t-5"))
    assert client.hlen(key) == 2
    assert 800 < client.ttl(key) <= 900
    client.close()


async def test_repeat_before_the_decision_keeps_its_place(gateway: Any, body: Body) -> None:
    gateway.scorer.delay_s = 0.02
    await asyncio.gather(*(gateway.post(body()) for _ in range(5)))
    await gateway.post(body(transaction_id="t-2"))
    assert set(counts_of(gateway)) == {0, 1}
    assert counts_of(gateway)[-1] == 1


async def test_refused_id_does_not_count(gateway: Any, body: Body) -> None:
    gateway.scorer.delay_s = 0.02
    answers = await asyncio.gather(
        gateway.post(body()), gateway.post(body(customer_id="c-other")), gateway.post(body())
    )
    assert sorted(r.status_code for r in answers) == [200, 200, 409]
    await gateway.post(body(transaction_id="t-2", customer_id="c-other"))
    assert counts_of(gateway)[-1] == 0


async def test_not_acknowledged_counts_for_a_minute(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway.log.up = False
    assert (await gateway.post(body())).status_code == 503
    gateway.log.up = True
    await gateway.post(body(transaction_id="t-2"))
    assert counts_of(gateway)[-1] == 1
    monkeypatch.setattr(pending_module, "UNWRITTEN_AGE_S", -1)  # as if the minute were over
    await gateway.post(body(transaction_id="t-3"))
    assert counts_of(gateway)[-1] == 1  # t-2, but not t-1 any more


async def test_repeats_that_complete_the_write_are_not_counted_twice(
    gateway: Any, body: Body, empty_valkey: str, engine: FeatureEngine
) -> None:
    bodies = [body(transaction_id=f"t-{i}") for i in range(20)]
    gateway.log.up = False
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gateway.breaker.FAILURES", 1_000)
        for sent in bodies:
            assert (await gateway.post(sent)).status_code == 503
        gateway.log.up = True
        for sent in bodies:
            assert (await gateway.post(sent)).status_code == 200
    for i, transaction in enumerate(gateway.log.decoded()):
        positions = LogPositions(np.zeros(1, dtype=np.int16), np.full(1, i, dtype=np.int64))
        engine.process(batch_of(transaction), positions)
    store = StateStore(empty_valkey)
    store.write("customer", engine.customers.take_dirty())
    store.close()
    await gateway.post(body(transaction_id="next"))
    assert counts_of(gateway)[-1] == 20  # far more than the record's ring of ids remembers


async def test_too_many_at_once_are_not_scored(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_module, "MAX_PENDING", 10)
    answers = [(await gateway.post(body(transaction_id=f"t-{i}"))).json() for i in range(13)]
    assert [a["decision_source"] for a in answers] == ["model"] * 10 + ["fallback"] * 3
    assert "too many payments of the customer at once" in answers[-1]["reasons"][0]
    assert len(gateway.log.messages) == 13
    assert await gateway.metric('flagger_gateway_errors_total{kind="customer_full"}') == 3
