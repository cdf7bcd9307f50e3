"""The layout of the decision table, as `create_table` of boto3 takes it.

`terraform/dynamodb.tf` creates the same; a test compares the two.
"""

from __future__ import annotations

from typing import Any

from flagger.decision_table import BY_CUSTOMER

__all__ = ["EXPIRY_ATTRIBUTE", "table_layout"]

EXPIRY_ATTRIBUTE = "expires_at"
"""DynamoDB deletes items some time (hours, at most days) after this."""


def table_layout(name: str) -> dict[str, Any]:
    """Return the arguments of `create_table`: on-demand capacity, a stream of new images."""
    return {
        "TableName": name,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [
            {"AttributeName": "transaction_id", "AttributeType": "S"},
            {"AttributeName": "customer_id", "AttributeType": "S"},
            {"AttributeName": "event_time_ms", "AttributeType": "N"},
        ],
        "KeySchema": [{"AttributeName": "transaction_id", "KeyType": "HASH"}],
        "GlobalSecondaryIndexes": [
            {
                "IndexName": BY_CUSTOMER,
                "KeySchema": [
                    {"AttributeName": "customer_id", "KeyType": "HASH"},
                    {"AttributeName": "event_time_ms", "KeyType": "RANGE"},
                ],
                "Projection": {"ProjectionType": "ALL"},
            }
        ],
        "StreamSpecification": {"StreamEnabled": True, "StreamViewType": "NEW_IMAGE"},
    }
