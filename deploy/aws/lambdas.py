"""Two functions for AWS Lambda: decisions from MSK to DynamoDB, and flags from there to people.

    topic decisions or alerts --(event source mapping)--> store_decisions --> DynamoDB table
    the table's stream --------(event source mapping)--> announce_flags --> SNS topic

Both may get the same records again: Lambda promises "at least once". `store_decisions` keeps the
first write of each transaction, so that the stream tells of each once. SNS gets a message again
only where it was sent and Lambda did not learn of it.

Settings are environment variables of the function: `DECISION_TABLE`, `RETENTION_DAYS` (400) and
`FLAGS_TOPIC_ARN`. Logs hold places and counts, no ids and no customers.
"""

from __future__ import annotations

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from deploy.aws.events import (
    Answer,
    KafkaRecord,
    kafka_failures,
    kafka_records,
    stream_failures,
)
from flagger.alert import Alert, parse_alert
from flagger.decision_table import DecisionTable, read_item
from flagger.errors import BadMessageError, ConfigurationError, DecisionStoreError

__all__ = ["announce_flags", "store_decisions"]

DEFAULT_RETENTION_DAYS = 400
"""A year and a month: the same days of last year can be looked up."""
WRITERS = 16
"""Writes to DynamoDB under way at once: at 5 ms each, a batch of 500 takes 0.2 s."""
MAX_MESSAGES_PER_BATCH = 10
"""Most single messages to people for one batch of the stream. Beyond, one message tells how many:
an attack of 10,000 flags sends about as many messages as there are batches (100 flags each)."""
MAX_IN_DIGEST = 5
"""How many flags a digest names, those with the largest amounts."""
_FLAGGED = ("review", "decline")

logger = logging.getLogger(__name__)
logger.setLevel(logging.INFO)


def _required(name: str) -> str:
    value = os.environ.get(name)
    if not value:
        raise ConfigurationError(f"The function's environment variable {name} is not set.")
    return value


@lru_cache(maxsize=1)
def _table(name: str) -> DecisionTable:
    # Connections outlive an invocation: the next one uses them again.
    return DecisionTable(name)


@lru_cache(maxsize=1)
def _sns() -> Any:
    import boto3

    return boto3.client("sns")


def store_decisions(event: dict[str, Any], _context: object) -> Answer:
    """Store the decisions of a Kafka event; the answer names those that were not stored.

    A message that is no decision is logged by its place and passed over: it never becomes one, and
    would hold its partition up for ever.
    """
    table = _table(_required("DECISION_TABLE"))
    days = int(os.environ.get("RETENTION_DAYS", DEFAULT_RETENTION_DAYS))
    expires_at_s = int(time.time()) + days * 86_400
    good: list[tuple[KafkaRecord, Alert]] = []
    unreadable = 0
    for record in kafka_records(event):
        try:
            good.append((record, parse_alert(record.value or b"")))
        except BadMessageError:
            unreadable += 1
            logger.error("No decision at %s: passed over", record.place)

    def store(one: tuple[KafkaRecord, Alert]) -> bool | DecisionStoreError:
        try:
            return table.put(one[1], expires_at_s)
        except DecisionStoreError as error:
            return error

    with ThreadPoolExecutor(WRITERS) as pool:
        outcomes = list(pool.map(store, good))
    failed = [
        record
        for (record, _), outcome in zip(good, outcomes, strict=True)
        if isinstance(outcome, DecisionStoreError)
    ]
    causes = {str(o) for o in outcomes if isinstance(o, DecisionStoreError)}
    for cause in sorted(causes):
        logger.error("%s", cause)
    logger.info(
        "stored %d, repeated %d, failed %d, unreadable %d",
        sum(outcome is True for outcome in outcomes),
        sum(outcome is False for outcome in outcomes),
        len(failed),
        unreadable,
    )
    return kafka_failures(failed)


def announce_flags(event: dict[str, Any], _context: object) -> Answer:
    """Tell people of the flagged decisions that are new in the table.

    The answer names what was not told; Lambda sends the stream again from the first of them on.
    """
    topic = _required("FLAGS_TOPIC_ARN")
    flags: list[tuple[str, Alert]] = []
    for record in event["Records"]:
        if record["eventName"] != "INSERT":  # expiry and repairs are no news
            continue
        number = record["dynamodb"]["SequenceNumber"]
        try:
            alert = read_item(record["dynamodb"]["NewImage"])
        except DecisionStoreError as error:
            logger.error("Stream record %s passed over: %s", number, error)
            continue
        if alert.decision in _FLAGGED:
            flags.append((number, alert))
    if not flags:
        return stream_failures([])
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        failed = _tell(topic, flags)
    except (BotoCoreError, ClientError) as error:
        logger.error("SNS did not take %d flags: %s", len(flags), type(error).__name__)
        failed = [number for number, _ in flags]
    logger.info("told %d, failed %d", len(flags) - len(failed), len(failed))
    return stream_failures(failed)


def _tell(topic: str, flags: list[tuple[str, Alert]]) -> list[str]:
    """Send the flags; return the sequence numbers of those that SNS did not take."""
    if len(flags) > MAX_MESSAGES_PER_BATCH:
        _sns().publish(
            TopicArn=topic, Subject=f"{len(flags)} flagged payments", Message=_digest(flags)
        )
        return []
    entries = [
        {
            "Id": str(i),
            "Subject": f"Payment of {alert.amount:g}: {alert.decision}",
            "Message": json.dumps(_words(alert)),
            "MessageAttributes": {
                "decision": {"DataType": "String", "StringValue": alert.decision}
            },
        }
        for i, (_, alert) in enumerate(flags)
    ]
    answer = _sns().publish_batch(TopicArn=topic, PublishBatchRequestEntries=entries)
    return [flags[int(entry["Id"])][0] for entry in answer.get("Failed", [])]


def _digest(flags: list[tuple[str, Alert]]) -> str:
    alerts = [alert for _, alert in flags]
    largest = sorted(alerts, key=lambda alert: alert.amount, reverse=True)[:MAX_IN_DIGEST]
    return json.dumps(
        {
            "flagged": len(alerts),
            "declined": sum(alert.decision == "decline" for alert in alerts),
            "amount": round(sum(alert.amount for alert in alerts), 2),
            "largest": [_words(alert) for alert in largest],
        }
    )


def _words(alert: Alert) -> dict[str, object]:
    """Return what people are told: what leads to the case, nothing about the customer."""
    return {
        "transaction_id": alert.transaction_id,
        "decision": alert.decision,
        "amount": alert.amount,
        "currency": alert.currency,
        "score": alert.score,
        "reasons": alert.reasons,
    }
