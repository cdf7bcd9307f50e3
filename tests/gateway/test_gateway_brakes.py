"""The gateway's brakes: a model that declines everybody is stopped, and the answers say so."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.gateway.test_gateway_backends import publish

pytestmark = pytest.mark.anyio


async def test_declines_beyond_the_cap_become_reviews(
    start_gateway: Callable[..., Any], body: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    caps: dict[str, Any] = {
        "brake_decline_share": 0.2,
        "brake_window_decisions": 10,
        "brake_min_decisions": 10,
    }
    async with start_gateway(**caps, model_repository=tmp_path) as gateway:
        gateway.scorer.score_value = 0.95
        answers = [
            (await gateway.post(body(transaction_id=f"t-{i}", customer_id=f"c-{i}"))).json()
            for i in range(4)
        ]
        assert [a["decision"] for a in answers] == ["decline", "decline", "review", "review"]
        assert answers[1]["reason_codes"] == ["score", "amount"]
        assert answers[2]["reason_codes"] == ["score", "brake", "amount"]
        assert len(answers[2]["reasons"]) == 3
        assert answers[2]["score"] == pytest.approx(0.95)
        logged = [t.decision.decision for t in gateway.log.decoded()]
        assert logged == [a["decision"] for a in answers]
        again = await gateway.post(body(transaction_id="t-2", customer_id="c-2"))
        assert again.json()["decision"] == "review"  # the first answer, whatever came since
        assert await gateway.metric("flagger_gateway_braked_total") == 2
        assert await gateway.metric('flagger_gateway_brake_engaged{cap="decline"}') == 1
        assert await gateway.metric('flagger_gateway_brake_engaged{cap="flag"}') == 1

        publish(tmp_path, "2")  # other thresholds owe nothing to the past, also if told to switch
        assert (await gateway.client.post("/v1/models/refresh")).json()["model_version"] == "2"
        assert await gateway.metric('flagger_gateway_brake_engaged{cap="decline"}') == 0
        assert (
            await gateway.metric('flagger_gateway_model_info{model="fraud_onnx",version="2"}') == 1
        )
