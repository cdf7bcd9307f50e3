"""A customer's payments in several partitions: topics that have grown, or producers that differ."""

from __future__ import annotations

import numpy as np
import pytest
from confluent_kafka.admin import AdminClient

from flagger.errors import ConfigurationError, StackError
from flagger.features.hashing import key_of
from flagger.kafka import client_config
from loadtest.stream_world import StreamWorld, message
from loadtest.topic_reader import read_topic
from streamer import source
from streamer.metrics import StreamerMetrics
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

KEYS = [f"{i}".encode() for i in range(12)]
"""With four partitions and with eight, no partition has all of them."""


def counted(world: StreamWorld, customer: str) -> int:
    """Return how many payments the stored record of a customer has counted."""
    with world.store() as store:
        (record,) = store.read("customer", np.array([key_of(customer)], dtype=np.uint64))
    return int(record["count"])


def test_a_customer_in_several_partitions_is_counted_and_shows(stream_world: StreamWorld) -> None:
    """As two producers do that choose partitions in different ways."""
    for i, key in enumerate(KEYS):
        stream_world.send([message(i, customer_id="both")], key=key)
    stream_world.send([message(100 + i, customer_id="one") for i in range(20)], key=b"one")
    metrics = stream_world.run_until(lambda _: len(stream_world.decided()) == len(KEYS) + 20)
    used = set(read_topic(stream_world.settings, stream_world.settings.decisions_topic).partition)
    # However the partitions were interleaved, each but the first was new to the customer once.
    assert len(used) - 1 <= metrics.moved._value.get() < len(KEYS)
    assert counted(stream_world, "both") == len(KEYS)
    assert counted(stream_world, "one") == 20


def test_outputs_have_to_grow_with_the_transactions(stream_world: StreamWorld) -> None:
    settings = stream_world.settings
    stream_world.grow(8, settings.transactions_topic)
    stream_world.grow(9, settings.alerts_topic)  # more is well: outputs grow first
    with pytest.raises(ConfigurationError, match=r"decisions has 4.* has 8.*--partitions 8"):
        ensure_topics(settings)
    stream_world.grow(8, settings.decisions_topic)
    ensure_topics(settings)
    stream_world.grow(2, settings.labels_topic)
    with pytest.raises(ConfigurationError, match=r"labels has 2 partitions; it needs 1"):
        ensure_topics(settings)


def test_new_outputs_have_as_many_partitions_as_the_transactions(
    stream_world: StreamWorld,
) -> None:
    settings = stream_world.settings
    names = {"decisions_topic": "decisions-of-9", "alerts_topic": "alerts-of-9"}
    stream_world.grow(9, settings.transactions_topic)
    ensure_topics(settings.model_copy(update=names))
    found = AdminClient(client_config(settings)).list_topics(timeout=10).topics
    assert [len(found[name].partitions) for name in names.values()] == [9, 9]


def test_a_streamer_notices_that_its_topic_has_grown(
    stream_world: StreamWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "_GROWTH_CHECK_S", 0.2)
    settings = stream_world.settings
    has_grown = False

    def grow_once(_: StreamerMetrics) -> bool:
        nonlocal has_grown
        if not has_grown and stream_world.decided():
            stream_world.grow(8, settings.decisions_topic, settings.alerts_topic)
            stream_world.grow(8, settings.transactions_topic)
            has_grown = True
        return False

    stream_world.send([message(1)])
    with pytest.raises(StackError, match=r"has 8 partitions now and had 4"):
        stream_world.run_until(grow_once)
    assert has_grown


def test_the_stream_goes_on_when_all_topics_have_grown(stream_world: StreamWorld) -> None:
    """Under the name it had, a streamer would get the partitions that it had, and no others."""
    settings = stream_world.settings
    customers = [f"grown-{i}" for i in range(len(KEYS))]

    def send(first: int) -> None:
        for i, customer in enumerate(customers):
            stream_world.send([message(first + i, customer_id=customer)], key=KEYS[i])

    send(0)
    stream_world.run_until(lambda _: len(stream_world.decided()) == len(KEYS))
    stream_world.grow(8, settings.transactions_topic, settings.decisions_topic)
    stream_world.grow(8, settings.alerts_topic)
    send(1_000)
    metrics = stream_world.run_until(lambda _: len(stream_world.decided()) == 2 * len(KEYS))
    decisions = stream_world.decided()
    assert len({decision.transaction_id for decision in decisions}) == len(decisions)
    assert [counted(stream_world, customer) for customer in customers] == [2] * len(KEYS)
    partitions = read_topic(settings, settings.decisions_topic).partition
    assert max(partitions) >= 4
    assert 0 < metrics.moved._value.get() < len(KEYS)  # the others stayed where they were
