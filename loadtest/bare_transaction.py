"""The floor of `latency-<rate>`: transactions of the client library alone, on the same broker.

Each carries what a small batch of the streamer does: some messages for every partition of a topic,
and the offsets of a consumer group. No features, no scores, no state, and one transaction at a
time with pauses between them, so that nothing waits for anything else.
"""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt
from confluent_kafka import Consumer, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.kafka import client_config, producer_config
from flagger.settings import Settings
from loadtest.topic_reader import Records, TopicReader

__all__ = ["BareTransactions", "measure_bare_transactions"]

_MESSAGES = 32
_VALUE = b"x" * 300
_WARM_UP = 200
_EVERY_S = 0.015
_TIMEOUT_S = 30.0


class BareTransactions:
    """What was measured.

    Attributes:
        commit_ms: From the first message to the commit's acknowledgement, float64 [n].
        read_ms: From a message's timestamp to a reader of committed messages, float64 [m].
    """

    def __init__(
        self, commit_ms: npt.NDArray[np.float64], read_ms: npt.NDArray[np.float64]
    ) -> None:
        self.commit_ms = commit_ms
        self.read_ms = read_ms


def measure_bare_transactions(settings: Settings, count: int = 400) -> BareTransactions:
    """Make transactions one after the other; the first 200 more only warm up.

    Args:
        settings: Where Kafka is; `partitions` is how many partitions each one writes to. Topic,
            group and producer are named after `transactions_topic`.
        count: How many to measure.
    """
    admin = AdminClient(client_config(settings))
    name = f"{settings.transactions_topic}-bare"
    topic = NewTopic(name, num_partitions=settings.partitions)
    for created in admin.create_topics([topic]).values():
        created.result(_TIMEOUT_S)
    consumer = Consumer(client_config(settings) | {"group.id": name, "enable.auto.commit": False})
    producer = Producer(
        producer_config(settings)
        | {"transactional.id": name, "linger.ms": 0, "retry.backoff.ms": 2}
    )
    parts: list[Records] = []
    done = threading.Event()
    with ExitStack() as stack:
        stack.callback(producer.close)
        stack.callback(consumer.close)
        group = _joined(consumer, name)  # the broker knows the topic now
        reader = TopicReader(settings, name, from_end=True)
        stack.callback(reader.close)
        producer.init_transactions(_TIMEOUT_S)
        while not reader.at_end:
            reader.read(0.1)

        def follow() -> None:
            while not done.is_set():
                parts.append(reader.read(0.05))

        follower = threading.Thread(target=follow, name="follower")
        follower.start()
        try:
            took = [
                _one(producer, name, settings.partitions, group, n) for n in range(_WARM_UP + count)
            ]
            time.sleep(0.5)  # the last one reaches the reader
        finally:
            done.set()
            follower.join()
    records = Records.concat(parts)
    order = np.argsort(records.timestamp_ms, kind="stable")
    latencies_ms = (records.read_ms - records.timestamp_ms)[order][_WARM_UP * _MESSAGES :]
    return BareTransactions(np.array(took[_WARM_UP:]) * 1000, latencies_ms)


def _joined(consumer: Consumer, topic: str) -> object:
    """Join the group; return its metadata, which fences an old member's transactions."""
    consumer.subscribe([topic])
    deadline_s = time.monotonic() + _TIMEOUT_S
    while not consumer.assignment():
        if time.monotonic() > deadline_s:
            raise TimeoutError(f"no partition of {topic} within {_TIMEOUT_S:g} s")
        consumer.poll(0.1)
    return consumer.consumer_group_metadata()


def _one(producer: Producer, topic: str, partitions: int, group: object, number: int) -> float:
    """Make one transaction; return how many seconds it took, and pause."""
    start_s = time.perf_counter()
    producer.begin_transaction()
    for i in range(_MESSAGES):
        producer.produce(topic, _VALUE, partition=i % partitions)
    offsets = [TopicPartition(topic, p, number + 1) for p in range(partitions)]
    producer.send_offsets_to_transaction(offsets, group, _TIMEOUT_S)
    producer.commit_transaction(_TIMEOUT_S)
    took_s = time.perf_counter() - start_s
    time.sleep(max(0.0, _EVERY_S - took_s))
    return took_s
