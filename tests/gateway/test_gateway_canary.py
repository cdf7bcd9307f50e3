"""The gateway's canary: chosen customers, a candidate that is slow, one that flags everything."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import flagger.trials
from flagger.canary import Canary
from flagger.features import FeatureContract
from flagger.features.hashing import key_of
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import file_sha256, set_live_version
from flagger.pointer import read_audit, read_pointer
from flagger.policy import Policy
from flagger.trials import set_canary
from flagger.triton import ModelName

pytestmark = pytest.mark.anyio
WORDS = ("EUR", "pos", "5732", "DE")
CUSTOMERS = [f"c-{i}" for i in range(40)]


def publish(repository: Path, version: str, words: tuple[str, ...]) -> None:
    folder = repository / "fraud_fil" / version
    folder.mkdir(parents=True)
    fields = ("currency", "merchant_category", "channel", "country")
    (folder / "contract.json").write_text(FeatureContract(dict.fromkeys(fields, words)).to_json())
    policy = Policy(f"p{version}", review_threshold=0.5, decline_threshold=0.9)
    (folder / "policy.json").write_text(json.dumps(policy.to_dict()))
    sums = {p.relative_to(repository).as_posix(): file_sha256(p) for p in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"artefacts": sums}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Version 1 is live, 2 has the same words in another order."""
    publish(tmp_path, "1", WORDS)
    publish(tmp_path, "2", WORDS[::-1])
    set_live_version(tmp_path, "1")
    return tmp_path


def split_by_version(gateway: Any, candidate_score: float, delay_s: float = 0.0) -> None:
    """Have the fake model answer for version 2 with another score, or late."""
    scorer = gateway.scorer
    first = scorer.score

    async def score(
        rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        answer: npt.NDArray[np.float32] = await first(rows, model, timeout_ms)
        if model.version == "2":
            await asyncio.sleep(delay_s)
            answer = np.array([candidate_score], dtype=np.float32)
        return answer

    scorer.score = score


async def wait_for(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not done():  # noqa: ASYNC110 - the pointer is a file
            await asyncio.sleep(0.02)


async def post_all(gateway: Any, body: Any, start: int = 0) -> dict[str, dict[str, Any]]:
    answers = {}
    for i, customer in enumerate(CUSTOMERS):
        sent = body(transaction_id=f"t-{start + i}", customer_id=customer)
        answers[customer] = (await gateway.post(sent)).json()
    return answers


def is_on(gateway: Any) -> bool:
    return gateway.app.state.door.service.canary._trial.on is not None


async def test_chosen_customers_are_decided_by_the_candidate(
    start_gateway: Callable[..., Any], body: Callable[..., Any], repository: Path
) -> None:
    set_canary(repository, "2", 0.4)
    canary = read_pointer(repository).canary
    assert canary is not None
    async with start_gateway(model_repository=repository, canary_timeout_ms=1_000) as gateway:
        split_by_version(gateway, 0.7)
        await wait_for(lambda: is_on(gateway))
        answers = await post_all(gateway, body)
        keys = np.array([key_of(customer) for customer in CUSTOMERS], dtype=np.uint64)
        chosen = dict(zip(CUSTOMERS, canary.chosen(keys).tolist(), strict=True))
        assert 5 < sum(chosen.values()) < 35
        for customer, answer in answers.items():
            told = answer["decision"], answer["model_version"], answer["policy_version"]
            assert told == (("review", "2", "p2") if chosen[customer] else ("approve", "1", "p1"))
        column = FeatureContract(dict.fromkeys(
            ("currency", "merchant_category", "channel", "country"), WORDS
        )).names.index("currency_code")  # fmt: skip
        codes = {
            (model.version, float(rows[0, column]))
            for rows, model in zip(gateway.scorer.rows, gateway.scorer.models, strict=True)
        }
        assert codes == {("1", 1.0), ("2", 4.0)}  # EUR in each version's own words
        candidate = 'flagger_gateway_canary_decisions_total{decision="review",group="candidate"}'
        assert await gateway.metric(candidate) == sum(chosen.values())
        set_canary(repository, None)
        await wait_for(lambda: not is_on(gateway))
        again = await post_all(gateway, body, start=1_000)
        assert {a["model_version"] for a in again.values()} == {"1"}


async def test_a_slow_candidate_costs_nobody_the_deadline_and_is_stopped(
    start_gateway: Callable[..., Any], body: Callable[..., Any], repository: Path
) -> None:
    set_canary(repository, "2", 0.5)
    async with start_gateway(model_repository=repository, canary_timeout_ms=10) as gateway:
        split_by_version(gateway, 0.7, delay_s=30)
        await wait_for(lambda: is_on(gateway))
        for start in range(0, 400, 40):
            answers = await post_all(gateway, body, start)
            assert {a["model_version"] for a in answers.values()} == {"1"}
            assert {a["decision_source"] for a in answers.values()} == {"model"}
            assert max(a["latency_ms"] for a in answers.values()) < 1_000
            if not is_on(gateway):
                break
        assert not is_on(gateway)
        assert await gateway.metric("flagger_gateway_canary_stopped_total") == 1
        assert await gateway.metric("flagger_gateway_canary_failures_total") == 40
        await wait_for(lambda: read_pointer(repository).canary is None)
    record = read_audit(repository)[-1]
    assert (record["action"], record["by"]) == ("canary stop", "flagger gateway")
    assert "40 of its last 40 requests" in record["why"]


async def test_a_version_that_cannot_be_used_is_not_tried_until_it_can(
    start_gateway: Callable[..., Any],
    body: Callable[..., Any],
    repository: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(flagger.trials, "RETRY_INTERVAL_S", 0.0)
    set_canary(repository, "2", 0.5)
    policy = repository / "fraud_fil" / "2" / "policy.json"
    good = policy.read_text()
    policy.write_text("{}")
    async with start_gateway(model_repository=repository) as gateway:
        await wait_for(lambda: "Version 2 is not tried" in caplog.text)
        answers = await post_all(gateway, body)
        assert {a["model_version"] for a in answers.values()} == {"1"}
        await asyncio.sleep(1.5 * FOLLOW_INTERVAL_S)  # it was looked at again
        assert caplog.text.count("Version 2 is not tried") == 1
        policy.write_text(good)
        await wait_for(lambda: is_on(gateway))
    assert read_pointer(repository).canary == Canary(
        "2", 0.5, read_pointer(repository).canary.since  # type: ignore[union-attr]
    )  # fmt: skip
