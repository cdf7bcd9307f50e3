"""The schemas of the API, generated from the msgspec types, with the core's limits."""

from __future__ import annotations

from typing import Any

import msgspec

from flagger.wire.limits import MAX_AMOUNT, MAX_CATEGORY_BYTES, MAX_ID_BYTES
from flagger.wire.messages import SCHEMA_VERSION, Label, Transaction
from gateway.answers import Answer, BatchAnswer
from gateway.feedback import Feedback
from gateway.problems import Problem
from gateway.routes_score import MAX_BATCH

__all__ = ["ANSWER_EXAMPLE", "TRANSACTION_EXAMPLE", "components"]

TRANSACTION_EXAMPLE: dict[str, Any] = {
    "transaction_id": "8f14e45f-ceea-467f-a4e6-9b6b5f2f1c10",
    "event_time": "2026-01-31T12:00:00Z",
    "customer_id": "tok_c_51",
    "terminal_id": "tok_t_9f2",
    "amount": 129.9,
    "currency": "EUR",
    "merchant_category": "5732",
    "channel": "ecom",
    "country": "DE",
}
ANSWER_EXAMPLE: dict[str, Any] = {
    "transaction_id": "8f14e45f-ceea-467f-a4e6-9b6b5f2f1c10",
    "decision": "review",
    "decision_source": "model",
    "score": 0.6214,
    "reasons": [
        "fraud score 0.6214 reaches the review threshold 0.5000",
        "amount 129.90",
    ],
    "reason_codes": ["score", "amount"],
    "model": "fraud_onnx",
    "model_version": "3",
    "policy_version": "3",
    "latency_ms": 2.137,
}

_CATEGORY = "; absent or not seen in training counts as unknown."
_FIELDS: dict[str, dict[str, Any]] = {
    "transaction_id": {
        "description": "Unique id; repeats with the same id get the first answer. At most "
        f"{MAX_ID_BYTES} bytes of UTF-8.",
        "minLength": 1,
        "maxLength": MAX_ID_BYTES,
    },
    "event_time": {
        "description": "RFC 3339 with a zone, or epoch milliseconds; from the year 2000 until a "
        "day from now.",
    },
    "customer_id": {
        "description": "Who pays: a token, not a card number. At most "
        f"{MAX_ID_BYTES} bytes of UTF-8.",
        "minLength": 1,
        "maxLength": MAX_ID_BYTES,
    },
    "terminal_id": {
        "description": f"The merchant's terminal. At most {MAX_ID_BYTES} bytes of UTF-8.",
        "minLength": 1,
        "maxLength": MAX_ID_BYTES,
    },
    "amount": {
        "description": "In units of the currency; 0 is an account verification.",
        "minimum": 0,
        "maximum": MAX_AMOUNT,
    },
    "currency": {"description": "ISO 4217" + _CATEGORY},
    "merchant_category": {"description": "ISO 18245" + _CATEGORY},
    "channel": {"description": "pos, ecom, atm, moto or contactless" + _CATEGORY},
    "country": {"description": "ISO 3166 alpha-2" + _CATEGORY},
    "schema_version": {
        "description": "Version of this layout; other versions are refused.",
        "minimum": SCHEMA_VERSION,
        "maximum": SCHEMA_VERSION,
    },
}


def _transaction_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of what callers send: the core's, less the decision, with the limits."""
    properties = dict(schema["properties"])
    del properties["decision"]
    for name, notes in _FIELDS.items():
        properties[name] = properties[name] | notes
        if "anyOf" in properties[name] and name != "event_time":
            text = {"type": "string", "maxLength": MAX_CATEGORY_BYTES}
            properties[name]["anyOf"] = [text, {"type": "null"}]
    properties["event_time"]["anyOf"] = [
        {"type": "integer"},
        {"type": "string", "format": "date-time"},
    ]
    return schema | {
        "description": "A payment to be decided; further members are kept and ignored.",
        "properties": properties,
        "examples": [TRANSACTION_EXAMPLE],
    }


def components() -> dict[str, Any]:
    """Return the schemas of `components` in the OpenAPI document."""
    _, schemas = msgspec.json.schema_components(
        [Transaction, Answer, BatchAnswer, Feedback, Label, Problem],
        ref_template="#/components/schemas/{name}",
    )
    batch = {
        "title": "Batch",
        "description": "Several payments to be decided, each as it would be alone.",
        "type": "object",
        "required": ["transactions"],
        "properties": {
            "transactions": {
                "type": "array",
                "maxItems": MAX_BATCH,
                "items": {"$ref": "#/components/schemas/Transaction"},
            }
        },
    }
    return schemas | {
        "Transaction": _transaction_schema(schemas["Transaction"]),
        "Answer": schemas["Answer"] | {"examples": [ANSWER_EXAMPLE]},
        "Batch": batch,
    }
