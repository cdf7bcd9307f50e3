"""Transactions in Avro and Protobuf, turned into the JSON that everything else reads.

A message in the wire format of Confluent's serializers begins with a byte 0 and the id of its
schema; JSON never does. So one topic may hold all three, and a producer can change over while
others do not. Fields are taken by name (Avro) or number (Protobuf); unknown ones are ignored.
"""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from flagger.errors import BadMessageError, SchemaRegistryError
from flagger.settings import Settings
from flagger.wire.limits import MAX_MESSAGE_BYTES
from streamer.registry import SchemaRegistry, WriterSchema

__all__ = ["PayloadReader"]

MAX_SCHEMAS = 1_000
"""Schemas kept; each change of a producer's schema is one. Beyond, all are asked for again."""
_MAGIC = b"\x00"
_HEAD = struct.Struct(">bI")
_FIRST_MESSAGE = b"\x00"
"""Protobuf: which message of its file; 0 is written for the list [0], the first one."""
_MILLIS = "timestamp-millis"
_Decode = Callable[[bytes], dict[str, Any]]

_to_json = msgspec.json.Encoder(decimal_format="number").encode


class PayloadReader:
    """Reads what is not JSON. One for each streamer; it remembers what it has learnt of schemas."""

    def __init__(self, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._decoders: dict[int, _Decode] = {}

    @classmethod
    def of(cls, settings: Settings) -> PayloadReader | None:
        """Return a reader whose registry answers; None where the settings name none.

        Raises:
            SchemaRegistryError: The registry does not answer.
        """
        if settings.schema_registry_url is None:
            return None
        registry = SchemaRegistry(settings)
        try:
            registry.check()
        except SchemaRegistryError:
            registry.close()
            raise
        return cls(registry)

    def close(self) -> None:
        """Close the connections."""
        self._registry.close()

    def to_json(self, values: Sequence[bytes]) -> tuple[list[bytes], dict[int, BadMessageError]]:
        """Return each message as JSON, and why some cannot be read (by index, b"" there).

        Raises:
            SchemaRegistryError: A schema is not known, and the registry does not answer.
        """
        found: list[bytes] = []
        refused: dict[int, BadMessageError] = {}
        for i, value in enumerate(values):
            if value[:1] != _MAGIC:
                found.append(value)
                continue
            try:
                found.append(self._read(value))
            except BadMessageError as error:
                refused[i] = error
                found.append(b"")
        return found, refused

    def _read(self, value: bytes) -> bytes:
        if len(value) > MAX_MESSAGE_BYTES:
            raise BadMessageError(
                f"message has {len(value):,} bytes; the limit is {MAX_MESSAGE_BYTES:,}"
            )
        if len(value) <= _HEAD.size:
            raise BadMessageError("begins like Avro or Protobuf, but ends within the schema's id")
        schema_id = _HEAD.unpack_from(value)[1]
        decode = self._decoders.get(schema_id)
        if decode is None:
            decode = _decoder(self._registry.find(schema_id), schema_id)
            if len(self._decoders) >= MAX_SCHEMAS:
                self._decoders.clear()
            self._decoders[schema_id] = decode
        try:
            return _to_json(decode(value))
        except BadMessageError:
            raise
        except Exception as error:
            # What a decoder raises on foreign bytes is not its contract; all of it means the same.
            raise BadMessageError(
                f"cannot be read by its schema {schema_id}: {type(error).__name__}"
            ) from error


def _decoder(schema: WriterSchema, schema_id: int) -> _Decode:
    if schema.kind == "AVRO":
        return _avro(schema.text, schema_id)
    if schema.kind == "PROTOBUF":
        return _protobuf(schema_id)
    raise BadMessageError(f"schema {schema_id} is {schema.kind}; Avro and Protobuf are read")


def _avro(text: str, schema_id: int) -> _Decode:
    from fastavro import parse_schema, schemaless_reader
    from fastavro.schema import SchemaParseException

    try:
        schema: Any = parse_schema(_with_plain_millis(json.loads(text)))
    except (SchemaParseException, ValueError) as error:
        raise BadMessageError(f"schema {schema_id} cannot be used: {error}") from error
    if schema.get("type") != "record":
        raise BadMessageError(f"schema {schema_id} is no record")

    def decode(value: bytes) -> dict[str, Any]:
        stream = io.BytesIO(value)
        stream.seek(_HEAD.size)
        record: Any = schemaless_reader(stream, schema, None)
        if stream.tell() != len(value):
            raise BadMessageError(f"has bytes that its schema {schema_id} does not know")
        return {name: field for name, field in record.items() if field is not None}

    return decode


def _with_plain_millis(schema: Any) -> Any:
    """Return the schema with milliseconds as the numbers that they are: no date is made of them."""
    if isinstance(schema, dict):
        if schema.get("logicalType") == _MILLIS:
            return {k: v for k, v in schema.items() if k != "logicalType"}
        return {k: _with_plain_millis(v) for k, v in schema.items()}
    if isinstance(schema, list):
        return [_with_plain_millis(part) for part in schema]
    return schema


def _protobuf(schema_id: int) -> _Decode:
    from streamer.payload_proto import transaction_class

    transaction = transaction_class()

    def decode(value: bytes) -> dict[str, Any]:
        if value[_HEAD.size : _HEAD.size + 1] != _FIRST_MESSAGE:
            raise BadMessageError(f"is not the first message of its schema {schema_id}")
        message = transaction.FromString(value[_HEAD.size + 1 :])
        return {field.name: set_value for field, set_value in message.ListFields()}

    return decode
