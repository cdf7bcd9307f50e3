"""The events with which Lambda calls our functions, and the answers that it understands.

Shapes: AWS Lambda developer guide, "Using Lambda with Amazon MSK" and "Process Amazon DynamoDB
records with Lambda"; the answer to a Kafka event is that of AWS's own Powertools for Lambda
(`aws_lambda_powertools.utilities.batch`, version 3.32).
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Answer", "KafkaRecord", "kafka_failures", "kafka_records", "stream_failures"]

Answer = dict[str, list[dict[str, Any]]]
"""What Lambda reads where ReportBatchItemFailures is on; no failures: the batch is done."""


@dataclass(frozen=True, slots=True)
class KafkaRecord:
    """One message of a Kafka event.

    Attributes:
        topic: Its topic.
        partition: Its partition.
        offset: Its offset.
        value: Its bytes; None: it has none, or they are not base64.
    """

    topic: str
    partition: int
    offset: int
    value: bytes | None

    @property
    def place(self) -> str:
        """Topic, partition and offset in one word, for logs."""
        return f"{self.topic}-{self.partition}@{self.offset}"


def kafka_records(event: dict[str, Any]) -> Iterator[KafkaRecord]:
    """Yield the messages of a Kafka event, partition by partition, in log order."""
    for records in event["records"].values():
        for record in records:
            try:
                value = base64.b64decode(record.get("value") or "", validate=True)
            except binascii.Error:
                value = b""
            yield KafkaRecord(
                record["topic"], int(record["partition"]), int(record["offset"]), value or None
            )


def kafka_failures(failed: list[KafkaRecord]) -> Answer:
    """Return the answer that gets these messages, and their partitions' later ones, again."""
    return {
        "batchItemFailures": [
            {"itemIdentifier": {"partition": f"{r.topic}-{r.partition}", "offset": r.offset}}
            for r in failed
        ]
    }


def stream_failures(sequence_numbers: list[str]) -> Answer:
    """Return the answer that gets the DynamoDB stream again from the first of these on."""
    return {"batchItemFailures": [{"itemIdentifier": number} for number in sequence_numbers]}
