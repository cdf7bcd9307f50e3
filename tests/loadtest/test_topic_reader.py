"""What a reader of committed messages is shown while somebody's transaction is open."""

from __future__ import annotations

import threading
import uuid

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

from flagger.kafka import client_config, producer_config
from flagger.settings import Settings
from loadtest.topic_reader import read_topic, wait_for_open_transactions

pytestmark = [pytest.mark.stack]


def test_what_was_committed_behind_an_open_transaction_is_waited_for(servers: Settings) -> None:
    topic = f"open-{uuid.uuid4().hex[:8]}"
    admin = AdminClient(client_config(servers))
    admin.create_topics([NewTopic(topic, 1)])[topic].result(30)
    producers = []
    for name in ("slow", "fast"):
        producer = Producer(producer_config(servers) | {"transactional.id": f"{topic}-{name}"})
        producer.init_transactions(30)
        producer.begin_transaction()
        producer.produce(topic, name.encode(), partition=0)
        assert producer.flush(30) == 0
        producers.append(producer)
    slow, fast = producers
    fast.commit_transaction(30)
    assert len(read_topic(servers, topic)) == 0
    end = threading.Timer(0.5, slow.commit_transaction, (30,))
    end.start()
    wait_for_open_transactions(servers, topic)
    assert read_topic(servers, topic).values == [b"slow", b"fast"]
    end.join()
    for producer in producers:
        producer.close()
