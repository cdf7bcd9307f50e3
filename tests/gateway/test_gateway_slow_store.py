"""Valkey answers one step of a request too late: there is one decision all the same."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flagger.errors import StateStoreError

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


async def fail(*_args: Any) -> None:
    raise StateStoreError("slow for a moment")


async def test_a_slow_read_on_another_replica_gives_no_second_decision(
    start_gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with start_gateway() as one, start_gateway() as other:
        first = await one.post(body())
        monkeypatch.setattr(other.state, "admit", fail)
        again = await other.post(body())
        assert again.json() == first.json()
        assert again.headers["idempotent-replayed"] == "true"
        assert other.log.messages == []


async def test_what_the_log_had_first_stays_the_decision(
    start_gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica that neither read nor claimed in time decides again, and learns it at the end."""
    async with start_gateway() as one, start_gateway() as other:
        first = await one.post(body())
        with monkeypatch.context() as patch:
            patch.setattr(other.state, "admit", fail)
            patch.setattr(other.state, "claim", fail)
            again = await other.post(body())
            assert again.json() == first.json()
            assert again.headers["idempotent-replayed"] == "true"
            assert (await other.post(body())).json() == first.json()
        assert [t.decision.decision for t in other.log.decoded()] == ["review"]  # not the first
        assert (await one.post(body())).json() == first.json()


async def test_claim_that_failed_is_made_good_by_the_mark(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(gateway.state, "claim", fail)
        first = await gateway.post(body())
    assert first.json()["decision_source"] == "model"
    assert await gateway.metric('flagger_gateway_errors_total{kind="claim_failed"}') == 1
    gateway.scorer.score_value = 0.99
    assert (await gateway.post(body())).json() == first.json()
    assert len(gateway.log.messages) == 1


async def test_a_valkey_that_hangs_for_a_moment_changes_no_answer(
    start_gateway: Any, body: Body
) -> None:
    """The other replica can neither read nor claim; it waits for the mark while there is time."""
    async with start_gateway(budget_ms=2_000) as one, start_gateway(budget_ms=2_000) as other:
        first = await one.post(body())
        await other.state.ping(1_000)
        await one.state._link.call("pause", [("CLIENT", "PAUSE", "1200", "ALL")], 1_000)
        again = await other.post(body())
        assert again.json() == first.json()
        assert again.headers["idempotent-replayed"] == "true"
        assert await other.metric('flagger_gateway_errors_total{kind="claim_failed"}') == 1
