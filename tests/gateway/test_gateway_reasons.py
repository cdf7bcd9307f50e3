"""Reasons at the gateway: for the flagged, in time or not at all, kept for repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from flagger.errors import ModelRefusedError, ModelUnavailableError

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]
UNEXPLAINED = 'flagger_gateway_errors_total{kind="unexplained"}'


async def test_a_repeat_and_the_log_carry_the_same_reasons(gateway: Any, body: Body) -> None:
    gateway.scorer.score_value = 0.95
    first = (await gateway.post(body())).json()
    assert first["reason_codes"] == ["score", "amount"]
    assert len(first["reasons"]) == 2
    assert (await gateway.post(body())).json() == first
    (logged,) = gateway.log.decoded()
    assert logged.decision.reasons == first["reasons"]
    assert logged.decision.reason_codes == first["reason_codes"]
    assert await gateway.metric(UNEXPLAINED) == 0


@pytest.mark.parametrize("error", [ModelUnavailableError("away"), ModelRefusedError("wrong")])
async def test_without_an_explanation_the_policy_s_reason_goes_out(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    async def fail(*_: Any) -> Any:
        raise error

    gateway.scorer.score_value = 0.95
    monkeypatch.setattr(gateway.scorer, "explain", fail)
    answer = (await gateway.post(body())).json()
    assert (answer["decision"], answer["decision_source"]) == ("decline", "model")
    assert answer["reason_codes"] == ["score"]
    assert await gateway.metric(UNEXPLAINED) == 1


async def test_approvals_are_not_explained(
    gateway: Any, body: Body, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def explain(*arguments: Any) -> Any:
        asked.append(arguments)

    monkeypatch.setattr(gateway.scorer, "explain", explain)
    answer = (await gateway.post(body())).json()
    assert answer["decision"] == "approve"
    assert answer["reasons"] == answer["reason_codes"] == []
    assert asked == []
