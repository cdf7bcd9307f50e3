"""Logs that begin later or end earlier than what was read of them: said, never passed over."""

from __future__ import annotations

import json

import pytest
from confluent_kafka import KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.errors import ConfigurationError
from flagger.kafka import client_config, producer_config
from loadtest.crash_world import PARTITIONS, wait_until
from loadtest.stream_world import START_MS, StreamWorld, message
from loadtest.topic_reader import read_topic
from streamer.dead_letters import read_dead_letters

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]


def label(number: int) -> bytes:
    fields = {
        "transaction_id": f"t{number}",
        "is_fraud": True,
        "source": "desk",
        "labelled_at": START_MS + 60_000,
        "terminal_id": "m1",
        "event_time": START_MS + 1_000,
    }
    return json.dumps(fields).encode()


def remove_before(world: StreamWorld, topic: str, offset: int, partition: int = 0) -> None:
    """Remove the beginning of a partition, as retention does."""
    admin = AdminClient(client_config(world.settings))
    where = TopicPartition(topic, partition, offset)
    admin.delete_records([where])[where].result(30)


def make_anew(world: StreamWorld, topic: str, partitions: int) -> None:
    """Delete a topic and create it again, empty."""
    admin = AdminClient(client_config(world.settings))
    admin.delete_topics([topic])[topic].result(30)

    def made() -> bool:
        try:
            admin.create_topics([NewTopic(topic, partitions)])[topic].result(30)
        except KafkaException:  # the old one is still being deleted
            return False
        return True

    wait_until(made, 30, "a new topic")


def frauds(world: StreamWorld) -> int:
    with world.store() as store:
        return int(store.read_all("terminal")["frauds"].sum())


def test_labels_that_are_left_are_applied_and_those_removed_are_counted(
    stream_world: StreamWorld,
) -> None:
    topic = stream_world.settings.labels_topic
    stream_world.send([message(1), message(2)])
    stream_world.send([label(1)], topic=topic)
    stream_world.run_until(lambda _: stream_world.is_stored())
    assert frauds(stream_world) == 1
    stream_world.send([label(2), label(3)], topic=topic)
    remove_before(stream_world, topic, 2)
    metrics = stream_world.run_until(lambda _: stream_world.is_stored())
    assert frauds(stream_world) == 2
    assert metrics.removed_unread.labels(topic)._value.get() == 1


def test_labels_of_another_log_are_refused(stream_world: StreamWorld) -> None:
    topic = stream_world.settings.labels_topic
    stream_world.send([message(1), message(2)])
    stream_world.send([label(1), label(2)], topic=topic)
    stream_world.run_until(lambda _: stream_world.is_stored())
    make_anew(stream_world, topic, 1)
    stream_world.send([label(3)], topic=topic)
    with pytest.raises(ConfigurationError, match="another log"):
        stream_world.run_until(lambda _: stream_world.is_stored())


def test_transactions_removed_undecided_are_counted_and_the_others_decided(
    stream_world: StreamWorld,
) -> None:
    topic = stream_world.settings.transactions_topic
    stream_world.send([message(i) for i in range(3)])
    stream_world.run_until(lambda _: stream_world.is_stored())
    stream_world.send([message(i) for i in range(3, 9)])
    (partition,) = set(read_topic(stream_world.settings, topic).partition.tolist())
    remove_before(stream_world, topic, 5, partition)
    metrics = stream_world.run_until(lambda _: stream_world.is_stored())
    assert len(stream_world.decided()) == 7
    assert metrics.removed_unread.labels(topic)._value.get() == 2
    remove_before(stream_world, topic, 9, partition)  # all of it, and everything was decided
    metrics = stream_world.run_until(lambda seen: seen.lag._value.get() == 0)
    assert metrics.removed_unread.labels(topic)._value.get() == 0


def test_a_topic_made_anew_under_a_streamer_ends_it(stream_world: StreamWorld) -> None:
    """Its first messages would pass for ones that were decided before."""
    topic = stream_world.settings.transactions_topic
    stream_world.send([message(i) for i in range(3)])
    stream_world.run_until(lambda _: stream_world.is_stored())
    running = stream_world.start()
    stream_world.send([message(3)])
    wait_until(lambda: len(stream_world.decided()) == 4, 30, "a decision")
    make_anew(stream_world, topic, PARTITIONS)
    stream_world.send([message(10, customer_id="new")])
    assert running.wait(30) == 1, running.tail()
    assert "made anew" in running.tail()
    with pytest.raises(ConfigurationError, match="another log"):
        stream_world.run_until(lambda _: False)


def test_what_is_no_entry_becomes_one_dead_letter_of_all_streamers(
    stream_world: StreamWorld,
) -> None:
    topics = (stream_world.settings.labels_topic, stream_world.settings.activity_topic)
    streamers = [stream_world.start(name) for name in ("a", "b")]
    wait_until(lambda: stream_world.members() == 2, 30, "two members")
    for topic in topics:
        stream_world.send([b"garbage"], topic=topic)
    stream_world.send([message(1)])
    wait_until(stream_world.is_stored, 30, "stored marks behind it")
    for streamer in streamers:
        streamer.stop()
    letters = list(read_dead_letters(stream_world.settings))
    assert sorted(letter.headers["source_topic"] for letter in letters) == sorted(topics)
    assert {letter.value for letter in letters} == {b"garbage"}


def test_the_mark_of_a_producers_transaction_is_no_message_that_waits(
    stream_world: StreamWorld,
) -> None:
    producer = Producer(producer_config(stream_world.settings) | {"transactional.id": "bank"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce(stream_world.settings.transactions_topic, message(1), b"k")
    producer.commit_transaction(30)
    producer.close()
    stream_world.run_until(
        lambda seen: seen.records_written._value.get() > 0 and seen.lag._value.get() == 0
    )
    assert len(stream_world.decided()) == 1
