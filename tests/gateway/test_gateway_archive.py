"""`GET /v1/decisions` where Valkey has no decision any more; the real archive: tests/deploy/aws."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from flagger.errors import DecisionStoreError
from gateway.answers import Answer
from gateway.lookup import Found

pytestmark = pytest.mark.anyio

OLD = Answer(
    transaction_id="t-old",
    decision="decline",
    decision_source="model",
    score=0.97,
    reasons=["score 0.970 reaches the decline threshold"],
    reason_codes=["score"],
    model="fraud_fil",
    model_version="3",
    policy_version="p3",
    latency_ms=30.0,
)


@dataclass
class SmallArchive:
    """An archive with one decision, or one that is away; held to the contract of the real one."""

    away: bool = False
    asked: int = 0

    async def find(self, transaction_id: str, timeout_ms: float) -> Found | None:
        self.asked += 1
        if self.away:
            raise DecisionStoreError("away")
        return Found(OLD, True) if transaction_id == OLD.transaction_id else None

    async def close(self) -> None:
        return None


def use(gateway: Any, archive: SmallArchive) -> None:
    door = gateway.app.state.door
    door.backends = replace(door.backends, archive=archive)


async def test_the_archive_is_asked_after_valkey(
    gateway: Any, body: Callable[..., dict[str, Any]]
) -> None:
    archive = SmallArchive()
    use(gateway, archive)
    answer = await gateway.client.get("/v1/decisions/t-old")
    assert answer.status_code == 200
    assert answer.json()["decision"] == "decline"
    assert (await gateway.client.get("/v1/decisions/t-never")).status_code == 404
    assert archive.asked == 2
    await gateway.post(body())
    assert (await gateway.client.get("/v1/decisions/t-1")).status_code == 200
    assert archive.asked == 2  # Valkey had it


async def test_an_archive_that_is_away_is_no_404(gateway: Any) -> None:
    use(gateway, SmallArchive(away=True))
    answer = await gateway.client.get("/v1/decisions/t-old")
    assert answer.status_code == 503
    assert answer.json()["title"] == "Stored decisions are away"
