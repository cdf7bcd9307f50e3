"""Topics of their own, transactions that flow into them, and a supervisor for streamers."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import valkey
import xgboost as xgb
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient, NewPartitions

from flagger.errors import FlaggerError, StackError
from flagger.kafka import client_config
from flagger.models import live_version, load_version
from flagger.settings import Settings
from loadtest.crash_check import CrashVerdict, check, distance_to_end
from loadtest.crash_points import CrashingStreamer
from loadtest.own_topics import own_topic_names
from loadtest.topic_reader import read_topic
from streamer.produce import Pace, ReplayProducer
from streamer.topics import ensure_topics

__all__ = ["CrashWorld", "wait_until"]

PARTITIONS = 4
_POLL_S = 0.1
_ANSWER_S = 10.0
_RESTART_PAUSE_S = 0.5
"""What a supervisor waits before it starts a streamer that ended by itself again."""


def wait_until(done: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Wait until `done` says so; raises StackError with `what` if it takes longer."""
    deadline_s = time.monotonic() + timeout_s
    while not done():
        if time.monotonic() > deadline_s:
            raise StackError(f"{what} did not happen within {timeout_s:.0f} s.")
        time.sleep(_POLL_S)


class CrashWorld:
    """One consumer group with its topics and its Valkey database; a context manager.

    Args:
        settings: Addresses and model repository.
        name: Goes into the names of topics and group.
        database: Valkey database; what is in it is deleted.
        folder: For the streamers' logs.
        flush_interval_ms: How often state is written; short, so that there are many moments.
    """

    def __init__(
        self,
        settings: Settings,
        name: str,
        database: int,
        folder: Path,
        *,
        flush_interval_ms: int = 150,
    ) -> None:
        server = (settings.valkey_url or "").rsplit("/", 1)[0]
        self.settings = settings.model_copy(
            update={
                **own_topic_names(name),
                "consumer_group": name,
                "valkey_url": f"{server}/{database}",
                "partitions": PARTITIONS,
                "state_flush_interval_ms": flush_interval_ms,
            }
        )
        repository = settings.model_repository
        self.model = load_version(repository, live_version(repository))
        self.sent = 0
        self.restarts = 0
        self._folder = folder
        self._streamers: list[CrashingStreamer] = []
        self._feeding: threading.Thread | None = None
        self._feed_error: Exception | None = None
        ensure_topics(self.settings)
        client: Any = valkey.Valkey.from_url(self.settings.valkey_url or "")
        client.flushdb()
        client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for streamer in self._streamers:
            streamer.kill()
        if self._feeding is not None:
            self._feeding.join()

    def feed(self, rows: Iterable[pa.RecordBatch], pace: Pace | None = None) -> None:
        """Send transactions and their labels, and wait until the broker has them."""
        producer = ReplayProducer(self.settings)
        try:
            producer.run(rows, pace)
        finally:
            self.sent += producer.sent
            producer.close()

    def start_feeding(self, rows: Iterable[pa.RecordBatch], per_s: float) -> None:
        """The same in the background; `finish_feeding` waits for its end."""

        def work() -> None:
            try:
                self.feed(rows, Pace(per_s=per_s))
            except Exception as error:
                self._feed_error = error

        self._feeding = threading.Thread(target=work, name="feed")
        self._feeding.start()

    @property
    def feeding(self) -> bool:
        """True while transactions are sent in the background."""
        return self._feeding is not None and self._feeding.is_alive()

    def finish_feeding(self) -> None:
        """Wait until everything is sent; raises what went wrong."""
        if self._feeding is not None:
            self._feeding.join()
            self._feeding = None
        if self._feed_error is not None:
            raise self._feed_error

    def start(
        self,
        instance: str = "0",
        *,
        point: str | None = None,
        nth: int = 1,
        how: signal.Signals = signal.SIGKILL,
        **changes: Any,
    ) -> CrashingStreamer:
        """Start a streamer, with changed settings; with a point it kills or stops itself there."""
        settings = self.settings.model_copy(update={"instance": instance, **changes})
        log = self._folder / f"streamer-{instance}.log"
        streamer = CrashingStreamer(settings, log, point=point, nth=nth, how=how)
        self._streamers.append(streamer)
        return streamer

    def supervise(self, streamer: CrashingStreamer, instance: str = "0") -> CrashingStreamer:
        """Return a streamer that runs: this one, or a new one if it ended, as Kubernetes would."""
        if streamer.running:
            return streamer
        self.restarts += 1
        time.sleep(_RESTART_PAUSE_S)
        return self.start(instance)

    def members(self) -> int:
        """Return how many streamers have partitions now; 0 while the broker cannot say."""
        admin = AdminClient(client_config(self.settings))
        group = self.settings.consumer_group
        try:
            found = admin.describe_consumer_groups([group])[group].result(_ANSWER_S)
        except KafkaException:  # it has just started, or nobody has joined yet
            return 0
        return sum(bool(member.assignment.topic_partitions) for member in found.members)

    def grow(self, partitions: int, *topics: str) -> None:
        """Add partitions to topics, and wait until the broker tells of them."""
        admin = AdminClient(client_config(self.settings))
        wanted = [NewPartitions(topic, partitions) for topic in topics]
        for future in admin.create_partitions(wanted).values():
            future.result(_ANSWER_S)

        def has_grown(topic: str) -> bool:
            found = admin.list_topics(topic, timeout=_ANSWER_S).topics[topic]
            return len(found.partitions) >= partitions

        for topic in topics:
            wait_until(partial(has_grown, topic), _ANSWER_S, f"growth of {topic}")

    def decisions(self) -> list[bytes]:
        """Return what a reader of committed messages finds on the decisions topic."""
        return read_topic(self.settings, self.settings.decisions_topic).values

    def is_stored(self) -> bool:
        """Return True if everything in the logs is decided and in the stored records."""
        with suppress(FlaggerError):  # a server may be away just now
            return not distance_to_end(self.settings)
        return False

    def drain(
        self, streamer: CrashingStreamer, instance: str = "0", timeout_s: float = 60.0
    ) -> CrashingStreamer:
        """Let a streamer work until everything is stored; one that ends is started again."""
        deadline_s = time.monotonic() + timeout_s
        while not self.is_stored():
            if time.monotonic() > deadline_s:
                raise StackError(
                    f"Not stored after {timeout_s:.0f} s: {distance_to_end(self.settings)}. The "
                    f"streamer's log ends with:\n{streamer.tail()}"
                )
            streamer = self.supervise(streamer, instance)
            time.sleep(_POLL_S)
        return streamer

    def check(self) -> CrashVerdict:
        """Hold everything against the offline replay; call it when everything is stored."""
        model = self.settings.model_repository / "fraud_fil" / self.model.version / "xgboost.json"
        booster = xgb.Booster(model_file=model)
        return check(
            self.settings,
            self.model,
            lambda rows: np.asarray(booster.inplace_predict(rows, missing=np.nan), np.float32),
        )
