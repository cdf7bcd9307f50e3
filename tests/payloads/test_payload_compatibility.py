"""Changes to a bank's schema that the registry lets through, and those that it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient

from streamer.payload_writer import AVRO_SCHEMA


def drop(name: str) -> Callable[[Any], Any]:
    return lambda schema: [f for f in schema["fields"] if f["name"] != name]


def retype(name: str, kind: Any) -> Callable[[Any], Any]:
    return lambda schema: [
        f | ({"type": kind} if f["name"] == name else {}) for f in schema["fields"]
    ]


def add(field: dict[str, Any]) -> Callable[[Any], Any]:
    return lambda schema: [*schema["fields"], field]


@pytest.mark.parametrize(
    ("change", "fits"),
    [
        (add({"name": "mcc_text", "type": ["null", "string"], "default": None}), True),
        (drop("country"), True),
        (add({"name": "mcc_text", "type": "string"}), False),
        (drop("customer_id"), False),
        (drop("amount"), False),
        (retype("amount", "string"), False),
    ],
)
def test_full_compatibility_keeps_what_the_streamer_needs(
    client: SchemaRegistryClient, change: Callable[[Any], Any], fits: bool
) -> None:
    """The rules of docs/payloads.md, as a real registry applies them."""
    subject = "rules-value"
    schema = json.loads(AVRO_SCHEMA.read_text())
    client.register_schema(subject, Schema(json.dumps(schema), "AVRO"))
    client.set_compatibility(subject, "FULL_TRANSITIVE")
    changed = Schema(json.dumps(schema | {"fields": change(schema)}), "AVRO")
    assert client.test_compatibility(subject, changed) is fits
