"""Times that senders and brokers see differently."""

from __future__ import annotations

import time

import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from flagger.kafka import client_config, producer_config
from loadtest.stream_world import START_MS, StreamWorld, message
from streamer.segments import Polled, read_segment

HOUR_MS = 3_600_000


def test_what_was_refused_as_too_far_ahead_is_refused_when_the_log_is_read_again() -> None:
    """State that is rebuilt later may not hold what was never decided."""
    event_ms = START_MS + 25 * HOUR_MS
    written_ms = [START_MS, START_MS + HOUR_MS, 0]
    polled = Polled(
        [message(i, event_time=event_ms) for i in range(3)],
        partition=np.zeros(3, dtype=np.int16),
        offset=np.arange(3),
        timestamp_ms=np.array(written_ms),
    )
    for now_ms in (START_MS + HOUR_MS, START_MS + 1_000 * HOUR_MS):
        decoded = read_segment(polled, now_ms).decoded
        assert decoded.source.tolist() == [1, 2]  # the last one's time says nothing
        ((place, error),) = decoded.bad
        assert place == 0
        assert "more than a day in the future" in str(error)


@pytest.mark.stack
@pytest.mark.timeout(150)
def test_a_message_from_the_brokers_future_is_decided(stream_world: StreamWorld) -> None:
    """Brokers refuse times more than an hour ahead, unless the topic says otherwise."""
    topic = stream_world.settings.transactions_topic
    limit = ConfigEntry(
        "message.timestamp.after.max.ms", str(2**62), incremental_operation=AlterConfigOpType.SET
    )
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[limit])
    admin = AdminClient(client_config(stream_world.settings))
    admin.incremental_alter_configs([resource])[resource].result(30)
    producer = Producer(producer_config(stream_world.settings))
    producer.produce(topic, message(1), b"k", timestamp=int(time.time() * 1000) + 2 * HOUR_MS)
    assert producer.flush(30) == 0
    producer.close()
    stream_world.run_until(lambda _: len(stream_world.decided()) == 1)
