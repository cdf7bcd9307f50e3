"""Lists and rules at the gateway: beside the model, beside the fallback, and for repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flagger.errors import ConfigurationError, ModelUnavailableError
from flagger.settings import Settings

pytestmark = pytest.mark.anyio

RULES = """
version = "1"
[[list]]
name = "stolen"
action = "deny"
field = "customer_id"
values = ["c-stolen"]
[[list]]
name = "staff"
action = "allow"
field = "customer_id"
values = ["c-staff"]
[[rule]]
name = "large"
decision = "review"
when = [{ feature = "amount", at_least = 500 }]
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


def change(file: Path, old: str, new: str) -> None:
    file.write_text(RULES.replace(old, new))


@pytest.mark.parametrize(
    ("score", "changes", "decision", "source", "codes"),
    [
        (0.1, {}, "approve", "model", []),
        (0.1, {"customer_id": "c-stolen"}, "decline", "list", ["list"]),
        (0.6, {"customer_id": "c-stolen"}, "decline", "list", ["list", "score", "amount"]),
        (0.95, {"customer_id": "c-staff"}, "approve", "list", ["list"]),
        (0.1, {"customer_id": "c-staff"}, "approve", "model", []),
        (0.1, {"amount": 500}, "review", "rules", ["rule"]),
        (0.95, {"amount": 500}, "decline", "model", ["score", "amount", "rule"]),
    ],
)
async def test_beside_the_model(
    score: float,
    changes: dict[str, Any],
    decision: str,
    source: str,
    codes: list[str],
    start_gateway: Callable[..., Any],
    body: Callable[..., dict[str, Any]],
    rules: Path,
) -> None:
    async with start_gateway(rulebook=rules) as gateway:
        gateway.scorer.score_value = score
        answer = (await gateway.post(body(**changes))).json()
        again = (await gateway.post(body(**changes))).json()
        metric = "flagger_gateway_decisions_total"
        line = f'{metric}{{decision="{decision}",decision_source="{source}"}}'
        assert await gateway.metric(line) == 1
        (written,) = gateway.log.decoded()
    assert (answer["decision"], answer["decision_source"]) == (decision, source)
    assert answer["reason_codes"] == codes
    assert answer["score"] == pytest.approx(score)
    assert again == answer
    assert written.decision.decision_source == source
    assert written.decision.reasons == answer["reasons"]


@pytest.mark.parametrize(
    ("changes", "decision", "source", "codes"),
    [
        ({}, "review", "fallback", []),
        ({"customer_id": "c-stolen"}, "decline", "list", ["list", "fallback"]),
        ({"customer_id": "c-staff"}, "approve", "list", ["list"]),
        ({"amount": 500}, "review", "fallback", ["fallback", "rule"]),
    ],
)
async def test_beside_the_fallback(
    changes: dict[str, Any],
    decision: str,
    source: str,
    codes: list[str],
    start_gateway: Callable[..., Any],
    body: Callable[..., dict[str, Any]],
    rules: Path,
) -> None:
    async with start_gateway(rulebook=rules) as gateway:
        gateway.scorer.error = ModelUnavailableError("down")
        answer = (await gateway.post(body(**changes))).json()
    assert (answer["decision"], answer["decision_source"]) == (decision, source)
    assert answer["reason_codes"] == codes
    assert answer["score"] is None


async def test_the_metric_shows_a_refused_file(
    start_gateway: Callable[..., Any], rules: Path
) -> None:
    async with start_gateway(rulebook=rules) as gateway:
        assert await gateway.metric("flagger_gateway_rulebook_refused") == 0
        change(rules, "amount", "amounts")
        gateway.app.state.door.service.rulebook._looked_s -= 10
        gateway.app.state.door.service.rulebook.refresh()
        assert await gateway.metric("flagger_gateway_rulebook_refused") == 1


async def test_a_gateway_does_not_start_with_a_bad_file(
    start_gateway: Callable[..., Any], rules: Path
) -> None:
    change(rules, "review", "approve")
    assert Settings(rulebook=rules).rulebook == rules
    with pytest.raises(ConfigurationError, match=r"rule 1 \(large\), decision"):
        async with start_gateway(rulebook=rules):
            pass
