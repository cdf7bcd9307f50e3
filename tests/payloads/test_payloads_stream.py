"""The same history in JSON, Avro and Protobuf gives the same decisions."""

from __future__ import annotations

import itertools
from datetime import date
from pathlib import Path

import msgspec
import pyarrow as pa
import pytest

from deploy.local.stack import LocalStack
from flagger.wire.messages import Decision
from loadtest.crash_world import CrashWorld
from train.simulate import SimulationConfig, simulate

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

SIZE = SimulationConfig(customers=60, terminals=40, days=25, start=date(2026, 1, 1), seed=5)
numbers = itertools.count(1)


def test_the_format_changes_no_decision(
    stack: LocalStack, own_valkey: LocalStack, registry_url: str, tmp_path: Path
) -> None:
    history = pa.Table.from_batches(simulate(SIZE))
    found: dict[str, dict[str, Decision]] = {}
    for payload_format in ("json", "avro", "protobuf"):
        changes = {
            "valkey_url": own_valkey.addresses.valkey_url,
            "schema_registry_url": registry_url,
            "payload_format": payload_format,
        }
        settings = stack.settings().model_copy(update=changes)
        name = f"payload-{payload_format}-{next(numbers)}"
        with CrashWorld(settings, name, 0, tmp_path) as world:
            world.feed(history.to_batches())
            world.drain(world.start()).stop()
            decisions = [msgspec.json.decode(v, type=Decision) for v in world.decisions()]
        assert len(decisions) == history.num_rows
        for decision in decisions:
            decision.latency_ms = 0.0
            # Explanations have a deadline; what they say is tested elsewhere.
            decision.reasons, decision.reason_codes = [], []
        found[payload_format] = {d.transaction_id: d for d in decisions}
    assert found["avro"] == found["json"]
    assert found["protobuf"] == found["json"]
    assert any(d.decision != "approve" for d in found["avro"].values())  # alerts were written too
