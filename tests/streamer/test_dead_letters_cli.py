"""`flagger dead-letters` on a real topic."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.stack import LocalStack
from flagger.errors import DataError
from flagger.kafka import client_config, producer_config
from flagger.settings import Settings
from loadtest.topic_reader import read_topic
from streamer.dead_letters import plain, read_dead_letters, send_again
from streamer.dead_letters_cli import dead_letters
from streamer.sink import MAX_DEAD_LETTER_BYTES, DecisionSink
from streamer.topics import ensure_topics

pytestmark = pytest.mark.stack
VALUE = b'{"amount": -1, "customer_id": "c-planted"}'


@pytest.fixture
def settings(
    stack: LocalStack, published: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> Settings:
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


def test_list_show_and_replay(settings: Settings) -> None:
    listed = run("list")
    assert "letters-transactions 1/17" in listed
    assert "c-planted" not in listed  # contents are shown on request only
    shown = run("show", "0")
    assert "reason: amount: -1 is not between 0 and" in shown
    assert VALUE.decode() in shown
    assert run("replay", "0") == "sent again: 1\n"
    log = read_topic(settings, "letters-transactions")
    assert (log.values, log.partition.tolist()) == ([VALUE], [1])
    with pytest.raises(DataError, match="no message at offset 99"):
        run("show", "99")
    assert CliRunner().invoke(dead_letters, ["replay"]).exit_code == 2


def test_what_a_sender_wrote_commands_no_terminal(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    producer = Producer(producer_config(settings))
    headers = {"reason": b"[/red] \x1b]0;owned\x07[bold]", "source_topic": b"\x1b[2J"}
    producer.produce("letters", b"\x1b[2J", headers=headers)
    assert producer.flush(30) == 0
    producer.close()
    last = str(max(letter.offset for letter in read_dead_letters(settings)))
    for shown in (run("list"), run("show", last).partition("bytes here")[0]):
        assert "[/red] \\x1b]0;owned\\x07[bold]" in shown
        assert "\x1b" not in shown
    assert plain("a\x1b[2J\u202eb\n") == "a\\x1b[2J\\u202eb\n"
    with pytest.raises(DataError, match="does not say where it came from"):
        run("replay", last)
    assert "left out, not whole or without a source: 1" in run("replay", "--all")


def test_all_are_sent_again_once(settings: Settings) -> None:
    """What is still bad comes back as a new letter; the old ones are not sent with it."""
    run("replay", "--all")
    assert run("replay", "--all") == "sent again: 0\n"
    producer = Producer(producer_config(settings))
    headers = {"source_topic": b"letters-transactions", "source_partition": b"0"}
    producer.produce("letters", b"came back", partition=0, headers=headers)
    assert producer.flush(30) == 0
    producer.close()
    assert run("replay", "--all") == "sent again: 1\n"
    log = read_topic(settings, "letters-transactions")
    assert log.values.count(b"came back") == 1
    assert "letters-transactions 0/?" in run("list")


def test_dead_letters_fit_into_a_topic_that_an_operator_made(stack: LocalStack) -> None:
    """With three partitions and Kafka's usual limit, and a message as large as that."""
    usual = {"max.message.bytes": "1048588"}
    settings = stack.settings().model_copy(
        update={"dead_letter_topic": "letters-made", "instance": "letters-made"}
    )
    admin = AdminClient(client_config(settings))
    admin.create_topics([NewTopic("letters-made", 3, config=usual)])["letters-made"].result(30)
    consumer = Consumer(client_config(settings) | {"group.id": settings.consumer_group})
    sink = DecisionSink(settings)
    values = [random.Random(3).randbytes(1_048_400), *(b"%d" % i for i in range(8))]
    for i, value in enumerate(values):
        sink.dead_letter(
            value, topic="t", place=(0, i), error=DataError(file="f", problem="p", remedy="r")
        )
    sink.commit([], consumer.consumer_group_metadata())
    sink.settle()
    sink.close()
    consumer.close()
    large, *others = read_dead_letters(settings)
    assert large.value == values[0][:MAX_DEAD_LETTER_BYTES]
    assert large.headers["bytes"] == "1048400"
    assert [letter.value for letter in others] == values[1:]
    with pytest.raises(DataError, match="too large to be kept whole"):
        send_again(settings, [*others, large])
