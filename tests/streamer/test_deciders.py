"""Who decides and why: model versions that follow each other, reasons, rules in their place."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import live_version
from loadtest.stream_world import StreamWorld, message
from streamer.metrics import StreamerMetrics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]


def test_a_new_model_version_takes_over_without_a_restart(
    stream_world: StreamWorld, small_training: Path, stack: LocalStack
) -> None:
    stream_world.send([message(i) for i in range(50)])
    published = threading.Event()

    def done(_: StreamerMetrics) -> bool:
        count = len(stream_world.decided())
        if count == 50 and not published.is_set():
            export_model(
                small_training,
                stream_world.settings.model_repository,
                triton_url=stack.addresses.triton_url,
                n_parity_rows=200,
            )
            published.set()
            time.sleep(2 * FOLLOW_INTERVAL_S)
            stream_world.send([message(i) for i in range(50, 100)])
        return count == 100

    stream_world.run_until(done)
    versions = [decision.model_version for decision in stream_world.decided()]
    before, after = stream_world.model.version, live_version(stream_world.settings.model_repository)
    assert before != after
    assert sorted(versions) == sorted([before] * 50 + [after] * 50)


def test_flagged_transactions_say_why_to_people_and_machines(
    stream_world: StreamWorld, small_training: Path
) -> None:
    table = pq.read_table(small_training.parent / "transactions.parquet").slice(0, 6_000)
    stream_world.feed(table.to_batches())
    stream_world.run_until(lambda _: len(stream_world.decided()) >= 6_000)
    alerts = stream_world.alerts()
    assert alerts
    flagged = [d for d in stream_world.decided() if d.decision != "approve"]
    assert sorted(a.transaction_id for a in alerts) == sorted(d.transaction_id for d in flagged)
    for alert in alerts:
        assert alert.reason_codes[0] == "score"
        assert len(alert.reasons) == len(alert.reason_codes)
    explained = [alert for alert in alerts if len(alert.reasons) > 1]
    assert len(explained) >= len(alerts) / 2  # the others waited too long for an answer


def test_rules_decide_while_the_model_server_is_away(stream_world: StreamWorld) -> None:
    nobody = f"127.0.0.1:{free_ports(1)[0]}"
    stream_world.send([*(message(i) for i in range(20)), message(20, amount=5_000.0)])
    metrics = stream_world.run_until(
        lambda _: len(stream_world.decided()) >= 21,
        triton_url=nobody,
        streamer_fallback="rules",
        streamer_fallback_after_ms=300,
        state_flush_interval_ms=1_000_000,
    )
    decisions = {d.transaction_id: d for d in stream_world.decided()}
    assert {d.decision_source for d in decisions.values()} == {"rules"}
    assert {d.score for d in decisions.values()} == {None}
    assert decisions["t1"].decision == "approve"
    assert decisions["t20"].decision == "review"
    assert "rule: an amount of 2,000 or more" in decisions["t20"].reasons
    assert set(decisions["t20"].reason_codes) == {"rule"}
    assert metrics.model_errors.labels("unavailable")._value.get() > 0
    assert len(stream_world.alerts()) == sum(d.decision != "approve" for d in decisions.values())
