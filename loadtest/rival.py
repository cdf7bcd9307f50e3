"""The rival of `flagger bench rival`: its consumer, and the feature rows that it is given."""

from __future__ import annotations

import http.client
import json
import time
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
from confluent_kafka import Consumer, Message, Producer

from flagger.errors import StackError
from flagger.features import FEATURE_NAMES
from flagger.kafka import client_config, producer_config
from flagger.models import ModelVersion
from flagger.policy import DECISIONS
from flagger.settings import Settings
from train.replay import replay

__all__ = ["Rival", "request_bodies"]

_WAIT_S = 30.0


def request_bodies(table: pa.Table, model: ModelVersion) -> dict[str, bytes]:
    """Return transaction id -> request body with the row that the feature engine computes."""
    bodies: dict[str, bytes] = {}
    batches = table.to_batches()
    for batch, features in zip(batches, replay(batches, model.contract), strict=True):
        rows = features.rows.astype(object)
        rows[np.isnan(features.rows)] = None  # JSON has no NaN
        ids = batch["transaction_id"].to_pylist()
        for transaction_id, row in zip(ids, rows.tolist(), strict=True):
            named = dict(zip(FEATURE_NAMES, row, strict=True))
            bodies[transaction_id] = json.dumps({"features": named}).encode()
    return bodies


@dataclass
class Rival:
    """The rival's consumer; a context manager.

    Attributes:
        settings: Its topics and group.
        model: Whose policy decides.
        port: Of its model server.
        bodies: Transaction id -> request body.
        call_ms: Duration of each HTTP call so far.
        commit_ms: Duration of each offset commit so far.
    """

    settings: Settings
    model: ModelVersion
    port: int
    bodies: dict[str, bytes]
    call_ms: list[float] = field(default_factory=list)
    commit_ms: list[float] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._consumer = Consumer(
            client_config(self.settings)
            | {
                "group.id": self.settings.consumer_group,
                "enable.auto.commit": False,
                "auto.offset.reset": "earliest",
            }
        )
        self._consumer.subscribe([self.settings.transactions_topic])
        self._producer = Producer(producer_config(self.settings) | {"linger.ms": 0})
        self._http = http.client.HTTPConnection("127.0.0.1", self.port, timeout=_WAIT_S)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._http.close()
        self._producer.close()
        self._consumer.close()

    def run(self, count: int) -> None:
        """Decide `count` messages, one after the other; raises StackError if none comes."""
        for _ in range(count):
            message = self._consumer.poll(_WAIT_S)
            if message is None or message.error() is not None:
                why = "nothing came" if message is None else message.error()
                raise StackError(
                    f"The rival cannot read {self.settings.transactions_topic}: {why}."
                )
            self._decide(message)

    def _decide(self, message: Message) -> None:
        transaction = json.loads(message.value())
        body = self.bodies.get(transaction["transaction_id"])
        if body is None:
            raise StackError(
                f"The rival met transaction {transaction['transaction_id']}, whose row is not "
                f"ready: the partitions are too uneven. Use other data, or fewer messages."
            )
        start_s = time.perf_counter()
        self._http.request("POST", "/score", body, {"Content-Type": "application/json"})
        response = self._http.getresponse()
        answer = response.read()
        self.call_ms.append((time.perf_counter() - start_s) * 1000)
        if response.status != 200:
            raise StackError(f"The rival's service answers {response.status}: {answer[:300]!r}.")
        score = json.loads(answer)["score"]
        code = int(self.model.policy.decide(np.array([score], dtype=np.float32))[0])
        decision = {
            "transaction_id": transaction["transaction_id"],
            "customer_id": transaction["customer_id"],
            "decision": DECISIONS[code],
            "score": score,
        }
        self._producer.produce(
            self.settings.decisions_topic,
            json.dumps(decision),
            message.key(),
            timestamp=message.timestamp()[1],
        )
        if self._producer.flush(_WAIT_S):
            raise StackError(f"Kafka did not take the rival's decision in {_WAIT_S:.0f} s.")
        start_s = time.perf_counter()
        self._consumer.commit(message, asynchronous=False)
        self.commit_ms.append((time.perf_counter() - start_s) * 1000)
