"""`stream-poison`: what one bad message in 1,000 costs, against the same stream without.

Each repeat streams two full topics with new groups: the good transactions alone, and the same with
the bad messages between them. They take turns at going first. Rates count good decisions only. What
it does not show: good messages that Triton refuses, and floods of bad ones.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
from confluent_kafka import KafkaError, Message, Producer

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.kafka import producer_config
from flagger.settings import Settings
from flagger.wire.limits import MAX_MESSAGE_BYTES
from loadtest.bench_result import BenchResult
from loadtest.bench_streamer import own_outputs, own_topics, stream_backlog
from streamer.dead_letters import read_dead_letters
from streamer.produce import ReplayProducer, encode_transactions

__all__ = ["KINDS", "bench_poison", "spoil"]

SCENARIO = "stream-poison"
ONE_IN = 1_000
SEED = 11
KINDS = ("broken JSON", "missing field", "wrong type", "too long")
"""The kinds of bad messages; they occur equally often."""
_FLUSH_S = 60.0


def spoil(good: bytes, kind: str) -> bytes:
    """Return a bad message of one of the `KINDS`, made of a good transaction."""
    if kind == "broken JSON":
        return good[: len(good) // 2]
    transaction = msgspec.json.decode(good)
    if kind == "missing field":
        del transaction["amount"]
    elif kind == "wrong type":
        transaction["amount"] = str(transaction["amount"])
    else:
        transaction["note"] = "x" * MAX_MESSAGE_BYTES
    return msgspec.json.encode(transaction)


class _Filler:
    """Sends good transactions, each batch with a bad message at a random place in it."""

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.transactions_topic
        self._failure: KafkaError | None = None
        self._producer = Producer(
            producer_config(settings) | {"linger.ms": 2, "on_delivery": self._delivered}
        )

    def run(self, table: pa.Table) -> list[bytes]:
        """Send everything; return the bad messages.

        Raises:
            StackError: The broker did not take all.
        """
        rng = np.random.default_rng(SEED)
        bad: list[bytes] = []
        for rows in table.combine_chunks().to_batches(max_chunksize=ONE_IN - 1):
            values = encode_transactions(rows)
            keys = rows["customer_id"].to_pylist()
            # A last batch that is shorter has a bad one as often as its length says.
            place = int(rng.integers(0, ONE_IN - 1))
            for i, (value, key) in enumerate(zip(values, keys, strict=True)):
                if i == place:
                    bad.append(spoil(value, KINDS[len(bad) % len(KINDS)]))
                    self._send(bad[-1], key)
                self._send(value, key)
        left = self._producer.flush(_FLUSH_S)
        self._producer.close()
        if left or self._failure is not None:
            raise StackError(
                f"Kafka did not take all messages of {self._topic}: {left:,} are unacknowledged, "
                f"first error: {self._failure}."
            )
        return bad

    def _send(self, value: bytes, key: str) -> None:
        while True:
            try:
                self._producer.produce(self._topic, value, key)
            except BufferError:
                self._producer.poll(0.05)
            else:
                return

    def _delivered(self, error: KafkaError | None, _message: Message) -> None:
        self._failure = self._failure or error


def bench_poison(
    table: pa.Table,
    repository: Path,
    out: Path,
    *,
    repeats: int,
    on_step: Callable[[str], None],
    servers: Settings | None = None,
) -> BenchResult:
    """Run the scenario on a fresh embedded stack.

    Args:
        table: Transactions in event-time order.
        repository: Model repository with a live version.
        out: Folder for the stack and the logs.
        repeats: Pairs of runs.
        on_step: Told what happens now.
        servers: Addresses of servers that run already; those are not started.

    Raises:
        StackError: A part failed, or a message has not exactly one outcome.
    """
    n = table.num_rows
    out.mkdir(parents=True, exist_ok=True)
    with LocalStack(
        out / "stack", model_repository=repository, settings=servers, fresh=True
    ) as stack:
        clean = own_topics(stack.settings(), f"{SCENARIO}-without")
        on_step("fill the topics")
        producer = ReplayProducer(clean)
        producer.run(table.to_batches())
        producer.close()
        poisoned = own_topics(clean, f"{SCENARIO}-with")
        poisoned = poisoned.model_copy(update={"labels_topic": clean.labels_topic})
        bad = _Filler(poisoned).run(table)
        result = BenchResult(
            SCENARIO,
            {"transactions": n, "bad_messages": len(bad), "kinds": KINDS, "partitions": 4},
        )
        for run in range(repeats):
            rates: dict[str, float] = {}
            for with_bad in (False, True) if run % 2 == 0 else (True, False):
                word = "with" if with_bad else "without"
                on_step(f"run {run + 1} of {repeats}: {word} bad messages")
                settings = own_outputs(
                    poisoned if with_bad else clean,
                    f"{SCENARIO}-{word}-{run}",
                    database=2 * run + with_bad,
                )
                rates[word] = stream_backlog(
                    settings, n, out / f"{word}-{run}.log", bad=len(bad) if with_bad else 0
                )
                if with_bad:
                    _require_dead_letters(settings, bad)
            result.add("without bad messages", rates["without"], "tx/s")
            result.add("with bad messages", rates["with"], "tx/s")
            result.add("with / without", rates["with"] / rates["without"], "")
            result.add("dead letters", len(bad), "")
    return result


def _require_dead_letters(settings: Settings, bad: list[bytes]) -> None:
    found = Counter(letter.value for letter in read_dead_letters(settings))
    if found != Counter(bad):
        raise StackError(
            f"{settings.dead_letter_topic} does not hold the {len(bad):,} bad messages that were "
            f"sent: {(Counter(bad) - found).total():,} are missing, "
            f"{(found - Counter(bad)).total():,} are others."
        )
