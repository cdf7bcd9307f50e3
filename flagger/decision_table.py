"""Decisions in a DynamoDB table, by transaction and by customer, for longer than Valkey's one day.

One item for each transaction. Its key is `transaction_id`; an index leads from `customer_id` and
`event_time_ms` to it. `body` holds the whole decision as JSON, the other attributes are copies for
keys, filters and expiry. The first write of a transaction counts: a repeated one changes nothing,
so that the table's stream tells each decision once. Limits and costs: `docs/aws.md`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from flagger.alert import Alert
from flagger.errors import ConfigurationError, DecisionStoreError
from flagger.wire.messages import Decision

__all__ = ["BY_CUSTOMER", "MAX_RECENT", "DecisionTable", "item_of", "read_item"]

BY_CUSTOMER = "by_customer"
"""Name of the index from `customer_id` and `event_time_ms`."""
MAX_RECENT = 100
"""Most decisions of a customer in one answer: about 100 KB, a tenth of what one query returns."""
_ATTEMPTS = 3
_CONNECTIONS = 32

_alerts = msgspec.json.Decoder(Alert)


def item_of(decision: Decision, expires_at_s: int) -> dict[str, dict[str, str]]:
    """Return the table's item of a decision (or of an alert, which is one with more fields).

    Args:
        decision: The decision.
        expires_at_s: Epoch seconds after which DynamoDB may delete it.
    """
    return {
        "transaction_id": {"S": decision.transaction_id},
        "customer_id": {"S": decision.customer_id},
        "event_time_ms": {"N": str(decision.event_time)},
        "decision": {"S": decision.decision},
        "expires_at": {"N": str(expires_at_s)},
        "body": {"S": msgspec.json.encode(decision).decode()},
    }


def read_item(item: dict[str, Any]) -> Alert:
    """Return the decision in an item of the table or of its stream.

    Raises:
        DecisionStoreError: It is none of ours.
    """
    try:
        return _alerts.decode(item["body"]["S"])
    except (KeyError, TypeError, msgspec.DecodeError) as error:
        raise DecisionStoreError(
            "An item of the decision table cannot be read: it has no decision in `body`. Another "
            "program or release wrote it; give each its own table."
        ) from error


class DecisionTable:
    """Blocking reads and writes; safe to use from several threads.

    Args:
        name: The table's name or ARN.
        region: AWS region; None: the environment's.
        timeout_ms: Limit of one attempt; a call makes up to three.

    Raises:
        ConfigurationError: No region, or the dependency group `aws` is not installed.
    """

    def __init__(self, name: str, *, region: str | None = None, timeout_ms: int = 1_000) -> None:
        try:
            import boto3
            from botocore.config import Config
            from botocore.exceptions import BotoCoreError, ClientError, NoRegionError
        except ImportError as error:
            raise ConfigurationError(
                "FLAGGER_DECISION_TABLE needs boto3: install the dependency group `aws`."
            ) from error
        self._name = name
        self._errors = (BotoCoreError, ClientError)
        limit_s = timeout_ms / 1000
        config = Config(
            connect_timeout=limit_s,
            read_timeout=limit_s,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            max_pool_connections=_CONNECTIONS,
        )
        try:
            self._client: Any = boto3.client("dynamodb", region_name=region, config=config)
        except NoRegionError as error:
            raise ConfigurationError(
                "The decision table's region is not known: set FLAGGER_DECISION_TABLE_REGION or "
                "AWS_REGION."
            ) from error

    def put(self, decision: Decision, expires_at_s: int) -> bool:
        """Store a decision unless its transaction has one; return True if it is new.

        Raises:
            DecisionStoreError: It was not stored; the same call may be tried again.
        """
        with self._mapped("take a write"):
            try:
                self._client.put_item(
                    TableName=self._name,
                    Item=item_of(decision, expires_at_s),
                    ConditionExpression="attribute_not_exists(transaction_id)",
                )
            except self._client.exceptions.ConditionalCheckFailedException:
                return False
        return True

    def find(self, transaction_id: str) -> Alert | None:
        """Return the decision about a transaction, or None.

        Reads are eventually consistent, at half the price: one that was just stored may be missing
        for a moment.
        """
        with self._mapped("answer a read"):
            found = self._client.get_item(
                TableName=self._name, Key={"transaction_id": {"S": transaction_id}}
            )
        return read_item(found["Item"]) if "Item" in found else None

    def recent(self, customer_id: str, limit: int = 20) -> list[Alert]:
        """Return a customer's latest decisions by event time, newest first, at most MAX_RECENT."""
        with self._mapped("answer a query"):
            found = self._client.query(
                TableName=self._name,
                IndexName=BY_CUSTOMER,
                KeyConditionExpression="customer_id = :customer",
                ExpressionAttributeValues={":customer": {"S": customer_id}},
                ScanIndexForward=False,
                Limit=min(limit, MAX_RECENT),
            )
        return [read_item(item) for item in found["Items"]]

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    @contextmanager
    def _mapped(self, what: str) -> Iterator[None]:
        """Turn the client library's errors into ours, with the cause kept and without ids."""
        try:
            yield
        except self._errors as error:
            response: dict[str, Any] = getattr(error, "response", {})
            code = response.get("Error", {}).get("Code", type(error).__name__)
            raise DecisionStoreError(
                f"The DynamoDB table {self._name} did not {what}: {code}. Check the table's name "
                f"and region, this role's rights and the table's capacity."
            ) from error
