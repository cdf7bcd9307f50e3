"""How far the other streamers of the group have come, in event time.

Nothing is announced between streamers: the group's committed offset of a partition says where its
owner is, and the message that stands there says when that is. A streamer commits a transaction's
offset and its terminal's count together, so everything before that message is counted already.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaError, KafkaException, TopicPartition

from flagger.errors import StackError
from flagger.kafka import client_config, is_fatal
from flagger.settings import Settings
from flagger.wire.decode import decode_transactions
from streamer.payloads import PayloadReader

__all__ = ["FRESH_S", "GroupProgress"]

_ANSWER_S = 30.0
FRESH_S = 0.05
"""While we wait for others, they are asked again after so long."""
_FETCH_WAIT_MS = 10
_FETCH_BACKOFF_MS = 10
"""librdkafka waits a second by default before it fetches again once its queue was full."""
_CONSUME_S = _FETCH_WAIT_MS / 1000
_PER_PARTITION = 100
"""Messages looked at for one that can be read. A partition that begins with more that cannot counts
as one that nothing is known of, until its owner has passed them."""
_NEVER = -(2**62)


class GroupProgress:
    """Finds the oldest transaction that another streamer of the group has not decided yet.

    Args:
        settings: Broker, group and topic.
        payloads: Reads messages that are not JSON; the caller closes it.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        settings: Settings,
        payloads: PayloadReader | None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> None:
        self._topic = settings.transactions_topic
        self._payloads = payloads
        self._clock_ms = clock_ms
        self._consumer = Consumer(
            client_config(settings)
            | {
                # Only to ask for the group's offsets: it subscribes to nothing and never joins.
                "group.id": settings.consumer_group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
                "isolation.level": "read_committed",
                "enable.partition.eof": True,
                "fetch.wait.max.ms": _FETCH_WAIT_MS,
                "queued.min.messages": _PER_PARTITION,
                "fetch.queue.backoff.ms": _FETCH_BACKOFF_MS,
            }
        )
        self._partitions: frozenset[int] = frozenset()
        self._own: frozenset[int] = frozenset()
        self._found_ms: int | None = None
        self._asked_s = 0.0

    def restart(self, own: Collection[int]) -> None:
        """Take note of the partitions that are ours from now on.

        Raises:
            StackError: The broker did not answer.
        """
        self._own = frozenset(own)
        self._asked_s = 0.0
        if not own:  # we have nothing that could wait for others
            self._partitions = frozenset()
            return
        try:
            found = self._consumer.list_topics(self._topic, timeout=_ANSWER_S)
        except KafkaException as error:
            raise StackError(f"Kafka did not describe {self._topic}: {error}.") from error
        self._partitions = frozenset(found.topics[self._topic].partitions)

    def slowest_ms(self) -> int | None:
        """Return the event time of the oldest undecided transaction in the others' partitions.

        Everything before it was committed before this call began. None: they are at their ends.
        The answer may be some `FRESH_S` old, when they were further behind.

        Raises:
            StackError: The broker did not answer.
        """
        others = self._partitions - self._own
        if not others:
            return None
        if time.monotonic() - self._asked_s > FRESH_S:
            self._found_ms = min(self._first_undecided(others).values(), default=None)
            self._asked_s = time.monotonic()
        return self._found_ms

    def close(self) -> None:
        """Close the connection."""
        self._consumer.close()

    def _first_undecided(self, partitions: frozenset[int]) -> dict[int, int]:
        """Return partition -> event time of its first message that is not committed yet."""
        try:
            committed = self._consumer.committed(
                [TopicPartition(self._topic, p) for p in sorted(partitions)], timeout=_ANSWER_S
            )
        except KafkaException as error:
            raise StackError(f"Kafka did not tell the group's offsets: {error}.") from error
        found: dict[int, int] = {}
        looked_at = dict.fromkeys(partitions, 0)
        open_ = set(partitions)
        deadline_s = time.monotonic() + _ANSWER_S
        self._consumer.assign(
            [
                TopicPartition(self._topic, tp.partition, max(tp.offset, 0) or OFFSET_BEGINNING)
                for tp in committed
            ]
        )
        while open_:
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"Kafka did not deliver partitions {sorted(open_)} of {self._topic} within "
                    f"{_ANSWER_S:.0f} s."
                )
            for message in self._consumer.consume(len(open_) * _PER_PARTITION, _CONSUME_S):
                p = message.partition()
                if p not in open_:
                    continue
                if message.error() is not None:
                    if self._is_end(message.error()):
                        open_.remove(p)
                    continue
                looked_at[p] += 1
                time_ms = self._event_time_ms(message.value())
                if time_ms is None and looked_at[p] >= _PER_PARTITION:
                    time_ms = _NEVER
                if time_ms is not None:
                    found[p] = time_ms
                    open_.remove(p)
        self._consumer.unassign()
        return found

    def _is_end(self, error: Any) -> bool:
        if is_fatal(error):
            raise StackError(f"Kafka refuses to deliver {self._topic}: {error}.")
        return bool(error.code() == KafkaError._PARTITION_EOF)  # noqa: SLF001 - the library's name

    def _event_time_ms(self, value: bytes | None) -> int | None:
        """Return when this transaction happened; None: it is no transaction."""
        values = [value or b""]
        if self._payloads is not None:
            values, _ = self._payloads.to_json(values)
        times = decode_transactions(values, self._clock_ms()).transactions.event_time_ms
        return int(times[0]) if len(times) else None
