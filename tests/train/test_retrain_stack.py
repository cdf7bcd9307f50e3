"""`flagger retrain` and `flagger drift labels` from the topics of a real Kafka."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from deploy.local.stack import LocalStack
from export.publish import export_model
from flagger.errors import ConfigurationError
from flagger.kafka import producer_config
from flagger.models import file_sha256
from flagger.settings import Settings
from loadtest.own_topics import TOPIC_FIELDS, own_topic_names
from streamer.produce import ReplayProducer
from streamer.topics import ensure_topics
from train.drift_cli import drift
from train.retrain_cli import retrain_command
from train.topics import read_values

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def topics(stack: LocalStack, small_training: Path) -> Settings:
    """40 days of payments with their labels, and a decision on each."""
    settings = stack.settings().model_copy(update=own_topic_names("retrain"))
    ensure_topics(settings)
    table = pq.read_table(small_training.parent / "transactions.parquet")
    producer = ReplayProducer(settings)
    producer.run(table.to_batches())
    producer.close()
    decisions = Producer(producer_config(settings))
    for row in table.select(["transaction_id", "event_time", "is_fraud"]).to_pylist():
        decision = {
            "transaction_id": row["transaction_id"],
            "event_time": int(row["event_time"].timestamp() * 1000),
            "decision": "review" if row["is_fraud"] else "approve",
            "model_version": "1",
        }
        decisions.produce(settings.decisions_topic, msgspec.json.encode(decision))
        decisions.poll(0)
    assert decisions.flush(30) == 0
    decisions.close()
    return settings


@pytest.fixture
def environment(topics: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in (*TOPIC_FIELDS, "kafka_bootstrap_servers", "triton_url", "valkey_url"):
        monkeypatch.setenv(f"FLAGGER_{name.upper()}", str(getattr(topics, name)))
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_all_is_read_and_an_unknown_topic_is_said(topics: Settings, small_training: Path) -> None:
    rows = pq.read_metadata(small_training.parent / "transactions.parquet").num_rows
    assert sum(map(len, read_values(topics, topics.transactions_topic))) == rows
    with pytest.raises(ConfigurationError, match="no-such-topic cannot be read"):
        list(read_values(topics, "no-such-topic"))


def test_a_candidate_is_made_of_the_topics(environment: Path, small_training: Path) -> None:
    repository = environment / "repository"
    export_model(small_training, repository, n_parity_rows=100)
    out = environment / "out"
    result = CliRunner().invoke(
        retrain_command,
        ["--repository", str(repository), "--out", str(out), "--maturity-days", "7"],
        catch_exceptions=False,
    )
    assert result.exit_code == 0, result.output
    # Fraud is all that is labelled, and some small days had none: they are left out, not genuine.
    assert re.search(r"mature to 2026-02-02, [1-9]\d* older days without any label", result.output)
    assert "Judged on" in result.output
    assert (out / "comparison.json").exists()
    assert not (out / "history.parquet").exists()  # customer ids stay where they were
    # Nor do they lie there after an error: this version's metrics do not tell its recipe.
    metrics, manifest = (
        repository / "fraud_fil" / "1" / name for name in ("metrics.json", "manifest.json")
    )
    metrics.write_text("[]")
    document = json.loads(manifest.read_text())
    document["artefacts"]["fraud_fil/1/metrics.json"] = file_sha256(metrics)
    manifest.write_text(json.dumps(document))
    with pytest.raises(ConfigurationError, match=r"metrics\.json does not hold the measures"):
        CliRunner().invoke(
            retrain_command,
            ["--repository", str(repository), "--out", str(out), "--maturity-days", "7"],
            catch_exceptions=False,
        )
    assert not (out / "history.parquet").exists()


@pytest.mark.usefixtures("environment")
def test_decisions_are_judged_by_the_labels_that_came() -> None:
    result = CliRunner().invoke(drift, ["labels", "--maturity-days", "7"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "too young" in result.output
    assert "precision 1.000, recall 1.000" in result.output
    young = CliRunner().invoke(drift, ["labels", "--maturity-days", "90"], catch_exceptions=False)
    assert "no day can be judged yet" in young.output
