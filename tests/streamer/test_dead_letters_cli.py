"""`flagger dead-letters` on a real topic."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from deploy.local.stack import LocalStack
from flagger.errors import DataError
from flagger.kafka import producer_config
from loadtest.topic_reader import read_topic
from streamer.dead_letters_cli import dead_letters
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack
VALUE = b'{"amount": -1, "customer_id": "c-planted"}'


@pytest.fixture
def settings(
    stack: LocalStack, published: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> object:
    names = {"dead_letter_topic": "letters", "transactions_topic": "letters-transactions"}
    settings = stack.settings().model_copy(update={**names, "partitions": 2})
    for name in (*names, "partitions", "kafka_bootstrap_servers", "triton_url", "valkey_url"):
        monkeypatch.setenv(f"FLAGGER_{name.upper()}", str(getattr(settings, name)))
    ensure_topics(
        settings.model_copy(update={"decisions_topic": "letters-d", "alerts_topic": "l-a"})
    )
    producer = Producer(producer_config(settings))
    producer.produce(
        "letters",
        VALUE,
        headers={
            "reason": b"amount: -1 is not between 0 and 1e+09",
            "error_class": b"BadMessageError",
            "source_topic": b"letters-transactions",
            "source_partition": b"1",
            "source_offset": b"17",
            "schema_version": b"1",
        },
    )
    assert producer.flush(30) == 0
    producer.close()
    return settings


def run(*arguments: str) -> str:
    result = CliRunner().invoke(dead_letters, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_list_show_and_replay(settings: object) -> None:
    listed = run("list")
    assert "letters-transactions 1/17" in listed
    assert "c-planted" not in listed  # contents are shown on request only
    shown = run("show", "0")
    assert "reason: amount: -1 is not between 0 and" in shown
    assert VALUE.decode() in shown
    assert run("replay", "0") == "sent again: 1\n"
    log = read_topic(settings, "letters-transactions")  # type: ignore[arg-type]
    assert (log.values, log.partition.tolist()) == ([VALUE], [1])
    with pytest.raises(DataError, match="no message at offset 99"):
        run("show", "99")
    assert CliRunner().invoke(dead_letters, ["replay"]).exit_code == 2
