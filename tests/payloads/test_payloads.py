"""Avro and Protobuf: written by Confluent's serializers, read as the same transactions."""

from __future__ import annotations

import base64
import io
import json
import socket
import struct
from collections.abc import Iterator
from contextlib import closing, suppress
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import fastavro
import msgspec
import numpy as np
import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import streamer.registry
from flagger.errors import BadMessageError, ConfigurationError, SchemaRegistryError
from flagger.settings import Settings, load_settings
from flagger.wire.decode import decode_transactions
from flagger.wire.limits import MAX_MESSAGE_BYTES
from flagger.wire.messages import parse_transaction
from streamer.payload_proto import file_descriptor, transaction_class
from streamer.payload_writer import AVRO_SCHEMA, PayloadWriter
from streamer.payloads import PayloadReader
from streamer.segments import Polled, read_segment

NOW_MS = 1_769_900_000_000
PROTOC = (
    "ChF0cmFuc2FjdGlvbi5wcm90bxIPZnJhdWRmbGFnZ2VyLnYxIvcCCgtUcmFuc2FjdGlvbhIbCg50cmFuc2FjdGlvbl9p"
    "ZBgBIAEoCUgAiAEB"
)
"""How the file's descriptor by protoc 31.1 begins: name, package, message, first field."""
PROTOC_BYTES = 422
JSON_SCHEMA = '{"$schema": "http://json-schema.org/draft-07/schema#", "type": "object"}'

TRANSACTIONS = [
    {
        "transaction_id": f"t-{i}-ü",
        "event_time": 1_769_860_800_000 + i,
        "customer_id": f"c-{i % 7}",
        "terminal_id": f"m-{i % 3}",
        "amount": 0.1 + i,
        **({"currency": "EUR", "country": "DE"} if i % 2 else {}),
        **({"channel": "ecom", "merchant_category": "5732"} if i % 3 else {}),
    }
    for i in range(50)
]


def settings_of(url: str, **changes: Any) -> Settings:
    return Settings(schema_registry_url=url, **changes)


def to_json(url: str, values: list[bytes]) -> tuple[list[bytes], dict[int, BadMessageError]]:
    reader = PayloadReader.of(settings_of(url))
    assert reader is not None
    with closing(reader):
        return reader.to_json(values)


def written(url: str, payload_format: str, topic: str = "transactions") -> list[bytes]:
    writer = PayloadWriter(
        settings_of(url, payload_format=payload_format, transactions_topic=topic)
    )
    with closing(writer):
        return list(writer.write(msgspec.json.encode(t) for t in TRANSACTIONS))


@pytest.mark.parametrize("payload_format", ["avro", "protobuf"])
def test_what_confluents_serializers_write_is_read_unchanged(
    registry_url: str, payload_format: str
) -> None:
    values = written(registry_url, payload_format, f"{payload_format}-same")
    assert all(value[0] == 0 for value in values)
    found, refused = to_json(registry_url, values)
    assert refused == {}
    assert [json.loads(value) for value in found] == TRANSACTIONS
    # The fast scanner reads the result; nothing has to be parsed one by one.
    decoded = decode_transactions(found, NOW_MS)
    expected = decode_transactions([msgspec.json.encode(t) for t in TRANSACTIONS], NOW_MS)
    assert decoded.bad == []
    for name in ("transaction_key", "customer_key", "terminal_key", "event_time_ms", "amount"):
        ours, theirs = (getattr(d.transactions, name) for d in (decoded, expected))
        assert ours.tobytes() == theirs.tobytes(), name
    assert (
        decoded.transactions.category_keys.tobytes()
        == expected.transactions.category_keys.tobytes()
    )


def test_one_topic_may_hold_all_three(registry_url: str) -> None:
    mixed = [
        written(registry_url, "avro", "mixed-avro")[0],
        msgspec.json.encode(TRANSACTIONS[1]),
        written(registry_url, "protobuf", "mixed-protobuf")[2],
    ]
    found, refused = to_json(registry_url, mixed)
    assert refused == {}
    assert [json.loads(value) for value in found] == TRANSACTIONS[:3]
    assert found[1] is mixed[1]


def avro_bytes(client: SchemaRegistryClient, subject: str, schema: Any, record: Any) -> bytes:
    """Return a message as a bank's own producer writes it, with a schema of its own."""
    schema_id = client.register_schema(subject, Schema(json.dumps(schema), "AVRO"))
    stream = io.BytesIO()
    fastavro.schemaless_writer(stream, fastavro.parse_schema(schema), record)
    return struct.pack(">bI", 0, schema_id) + stream.getvalue()


def test_a_schema_of_the_banks_own_with_our_names(
    registry_url: str, client: SchemaRegistryClient
) -> None:
    # Other order, more fields, a decimal amount, microseconds, an enumeration, nothing optional.
    schema = {
        "type": "record",
        "name": "CardPayment",
        "fields": [
            {"name": "acquirer", "type": {"type": "array", "items": "string"}},
            {
                "name": "amount",
                "type": {"type": "bytes", "logicalType": "decimal", "precision": 12, "scale": 2},
            },
            {"name": "terminal_id", "type": "string"},
            {"name": "event_time", "type": {"type": "long", "logicalType": "timestamp-micros"}},
            {"name": "customer_id", "type": "string"},
            {"name": "transaction_id", "type": "string"},
            {
                "name": "channel",
                "type": {"type": "enum", "name": "Channel", "symbols": ["pos", "ecom"]},
            },
        ],
    }
    record = {
        "acquirer": ["a", "b"],
        "amount": Decimal("1299.95"),
        "terminal_id": "m-1",
        "event_time": datetime(2026, 1, 31, 12, 0, 0, 123_456, tzinfo=UTC),
        "customer_id": "c-1",
        "transaction_id": "t-1",
        "channel": "ecom",
    }
    value = avro_bytes(client, "own-value", schema, record)
    (found,), refused = to_json(registry_url, [value])
    assert refused == {}
    transaction = parse_transaction(found, NOW_MS)
    assert transaction.amount == 1299.95
    assert transaction.event_time_ms == 1_769_860_800_123
    assert transaction.channel == "ecom"
    assert decode_transactions([found], NOW_MS).bad == []


def test_messages_that_cannot_be_read_say_why(
    registry_url: str, client: SchemaRegistryClient
) -> None:
    good = written(registry_url, "avro", "broken-avro")[0]
    protobuf = written(registry_url, "protobuf", "broken-protobuf")[0]
    text = client.register_schema(
        "text-value", Schema('{"type": "enum", "name": "E", "symbols": ["A"]}', "AVRO")
    )
    listed = client.register_schema("json-value", Schema(JSON_SCHEMA, "JSON"))
    bad = {
        "schema's id": b"\x00\x01",
        "does not have": struct.pack(">bI", 0, 987_654) + b"x",
        "cannot be read by its schema": good[:-9],
        "bytes that its schema": good + b"more",
        "is no record": struct.pack(">bI", 0, text) + b"\x02a",
        "is JSON": struct.pack(">bI", 0, listed) + b"{}",
        "not the first message": protobuf[:5] + b"\x02\x02" + protobuf[6:],
        "the limit is": good + b"x" * MAX_MESSAGE_BYTES,
        "DecodeError": protobuf[:6] + b"\xff\xff\xff",
    }
    found, refused = to_json(registry_url, [*bad.values(), good])
    assert found[-1] != b""
    assert sorted(refused) == list(range(len(bad)))
    for words, error in zip(bad, refused.values(), strict=True):
        assert words in str(error)


def test_what_protobuf_leaves_out_is_no_zero(registry_url: str) -> None:
    whole = written(registry_url, "protobuf", "absent-protobuf")[0]
    without_amount = transaction_class()(
        transaction_id="t", event_time=NOW_MS, customer_id="c", terminal_id="m"
    )
    free = transaction_class()(
        transaction_id="t", event_time=NOW_MS, customer_id="c", terminal_id="m", amount=0.0
    )
    values = [whole[:6] + m.SerializeToString() for m in (without_amount, free)]
    found, refused = to_json(registry_url, values)
    assert refused == {}
    decoded = decode_transactions(found, NOW_MS)
    ((place, error),) = decoded.bad
    assert place == 0
    assert "amount" in str(error)
    assert decoded.transactions.amount.tolist() == [0.0]


def test_the_descriptor_is_protocs() -> None:
    ours = file_descriptor().SerializeToString()
    assert ours.startswith(base64.b64decode(PROTOC))
    assert len(ours) == PROTOC_BYTES
    fields = file_descriptor().message_type[0].field
    assert [f.number for f in fields] == list(range(1, 10))
    avro = json.loads(AVRO_SCHEMA.read_text())
    assert [f["name"] for f in avro["fields"]] == [f.name for f in fields]


def test_dead_letters_keep_the_bytes_that_were_sent(registry_url: str) -> None:
    good, other = written(registry_url, "avro", "letters-avro")[:2]
    sent = [good, good[:-9], b'{"no": "transaction"}', other]
    found, refused = to_json(registry_url, sent)
    polled = Polled(
        found,
        np.zeros(4, np.int16),
        np.arange(4),
        np.zeros(4, np.int64),
        originals=sent,
        refused=refused,
    )
    segment = read_segment(polled, NOW_MS)
    assert [place for place, _ in segment.decoded.bad] == [1, 2]
    assert "cannot be read by its schema" in str(segment.decoded.bad[0][1])
    assert [segment.polled.original(i) for i in range(4)] == sent
    kept = segment.select(np.array([False, True, False, True]))
    assert [kept.polled.original(i) for i in range(2)] == [sent[1], sent[3]]
    ((place, error),) = kept.decoded.bad
    assert place == 0
    assert "cannot be read by its schema" in str(error)
    assert len(kept) == 1


def test_a_registry_that_is_away_ends_the_streamer_at_its_start() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(SchemaRegistryError, match="FLAGGER_SCHEMA_REGISTRY_URL"):
        PayloadReader.of(settings_of(f"http://127.0.0.1:{port}"))
    assert PayloadReader.of(Settings()) is None


def test_a_registry_that_goes_away_loses_no_message(
    registry_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    value = written(registry_url, "avro", "away-avro")[0]
    monkeypatch.setattr(streamer.registry, "_PAUSE_S", 0.01)
    settings_ = settings_of(registry_url)
    reader = PayloadReader.of(settings_)
    assert reader is not None
    real = reader._registry.client
    asked = 0

    class Flaky:
        """The real client, but the first requests find nobody."""

        @staticmethod
        def get_schema(schema_id: int) -> Any:
            nonlocal asked
            asked += 1
            if asked < failures:
                raise ConnectionError("away")
            return real.get_schema(schema_id)

    reader._registry.client = Flaky
    failures = 3
    assert reader.to_json([value])[1] == {}
    reader._decoders.clear()
    asked, failures = 0, 1_000
    with pytest.raises(SchemaRegistryError, match="Nothing is lost"):
        reader.to_json([value])
    reader._registry.client = real
    reader.close()


def test_settings_belong_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGGER_PAYLOAD_FORMAT", "avro")
    with pytest.raises(ConfigurationError, match="needs schema_registry_url"):
        load_settings()


@pytest.fixture
def fuzzed(registry_url: str) -> Iterator[tuple[PayloadReader, list[bytes]]]:
    reader = PayloadReader.of(settings_of(registry_url))
    assert reader is not None
    yield reader, [written(registry_url, f, f"fuzz-{f}")[5] for f in ("avro", "protobuf")]
    reader.close()


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_any_bytes_are_read_or_refused(
    fuzzed: tuple[PayloadReader, list[bytes]], data: st.DataObject
) -> None:
    reader, samples = fuzzed
    base = data.draw(st.sampled_from(samples))
    cut = data.draw(st.integers(5, len(base)))
    value = base[:cut] + data.draw(st.binary(max_size=40))
    (found,), refused = reader.to_json([value])
    assert (found == b"") == (0 in refused)
    if found:
        with suppress(BadMessageError):
            parse_transaction(found, NOW_MS)
