"""What could not be decided: look at it, and send it again once the cause is gone."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_STORED,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient

from flagger.errors import DataError, StackError
from flagger.kafka import client_config, producer_config
from flagger.kafka_access import require_access
from flagger.settings import Settings

__all__ = [
    "DeadLetter",
    "find_dead_letters",
    "mark_sent",
    "plain",
    "read_dead_letters",
    "send_again",
]

_WAIT_S = 10.0
_FLUSH_S = 30.0


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """One message of the dead-letter topic.

    Attributes:
        offset: Its offset there; the number by which the commands name it.
        at: When it was written.
        value: The original bytes.
        headers: reason, error_class, source_topic, source_partition, source_offset,
            schema_version; `bytes`: of the original, where only its beginning was kept.
    """

    offset: int
    at: datetime
    value: bytes
    headers: dict[str, str]

    @property
    def source(self) -> str:
        """Where it came from: topic partition/offset; `?` where nothing says so."""
        found = (
            self.headers.get(f"source_{what}", "?") for what in ("topic", "partition", "offset")
        )
        return "{} {}/{}".format(*found)

    @property
    def obstacle(self) -> str:
        """Why it cannot be sent again; empty: it can."""
        if "bytes" in self.headers:
            return "was too large to be kept whole"
        if not {"source_topic", "source_partition"} <= self.headers.keys():
            return "does not say where it came from"
        return ""

    @classmethod
    def of(cls, message: Message) -> DeadLetter:
        """Read a message."""
        headers = {name: value.decode(errors="replace") for name, value in message.headers() or ()}
        at = datetime.fromtimestamp(message.timestamp()[1] / 1000, UTC)
        return cls(message.offset(), at, message.value() or b"", headers)


def _consumer(settings: Settings) -> Consumer:
    require_access(settings, AdminClient, KafkaException)
    return Consumer(
        client_config(settings)
        | {
            "group.id": "flagger-dead-letters",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
        }
    )


def read_dead_letters(settings: Settings, *, unsent: bool = False) -> Iterator[DeadLetter]:
    """Yield what is in the dead-letter topic, oldest first.

    Args:
        settings: Broker and topic.
        unsent: Only what is newer than the last `mark_sent`.

    Raises:
        ConfigurationError: The broker refuses us.
        StackError: It did not answer.
    """
    consumer = _consumer(settings)
    begin = OFFSET_STORED if unsent else OFFSET_BEGINNING
    try:
        consumer.assign([TopicPartition(settings.dead_letter_topic, 0, begin)])
        while True:
            message = consumer.poll(_WAIT_S)
            if message is None:
                raise StackError(
                    f"Kafka sent nothing of {settings.dead_letter_topic} for {_WAIT_S:.0f} s."
                )
            error = message.error()
            if error is None:
                yield DeadLetter.of(message)
            elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - the library's name
                return
            else:
                raise StackError(f"{settings.dead_letter_topic} cannot be read: {error}.")
    finally:
        consumer.close()


def mark_sent(settings: Settings, letters: Sequence[DeadLetter]) -> None:
    """Remember that everything up to the last of these was sent again.

    What is still bad comes back as a new dead letter: sent again and again with its copies, the
    topic would double each time.

    Raises:
        StackError: The broker did not take the mark.
    """
    if not letters:
        return
    consumer = _consumer(settings)
    place = TopicPartition(settings.dead_letter_topic, 0, letters[-1].offset + 1)
    try:
        consumer.commit(offsets=[place], asynchronous=False)
    except KafkaException as error:
        raise StackError(
            f"All were sent, but Kafka did not note it ({error}): the next `--all` sends them "
            f"once more, which does no harm."
        ) from error
    finally:
        consumer.close()


def find_dead_letters(settings: Settings, offsets: Iterable[int]) -> list[DeadLetter]:
    """Return the dead letters with these offsets, in their order in the topic.

    Raises:
        DataError: One is not there.
    """
    wanted = set(offsets)
    found = [letter for letter in read_dead_letters(settings) if letter.offset in wanted]
    missing = wanted - {letter.offset for letter in found}
    if missing:
        raise DataError(
            file=settings.dead_letter_topic,
            problem=f"has no message at offset {', '.join(map(str, sorted(missing)))}",
            remedy="`flagger dead-letters list` shows what is there",
        )
    return found


def plain(text: str) -> str:
    """Return text without what a terminal would obey; line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in text)


def send_again(settings: Settings, letters: Iterable[DeadLetter]) -> int:
    """Send the original bytes to the partition they came from; return how many.

    Sending one twice does no harm: a transaction id that was decided is recognised.

    Raises:
        DataError: One does not say where it came from, or is not whole; nothing is sent.
        StackError: The broker did not take all.
    """
    letters = list(letters)
    for letter in letters:
        if letter.obstacle:
            raise DataError(
                file=settings.dead_letter_topic,
                problem=f"the message at offset {letter.offset} {letter.obstacle}",
                remedy="Leave it out",
            )
    producer = Producer(producer_config(settings))
    failures: list[KafkaError] = []
    count = 0
    for letter in letters:
        producer.produce(
            letter.headers["source_topic"],
            letter.value,
            partition=int(letter.headers["source_partition"]),
            on_delivery=lambda error, _: failures.append(error) if error else None,
        )
        count += 1
    left = producer.flush(_FLUSH_S)
    producer.close()
    if left or failures:
        why = f", first error: {failures[0]}" if failures else ""
        raise StackError(f"Kafka took {count - left - len(failures)} of {count} messages{why}.")
    return count
