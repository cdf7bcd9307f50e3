"""What `flagger produce` writes: JSON as it is, or Avro and Protobuf by Confluent's serializers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from importlib.resources import files
from typing import Any

import msgspec

from flagger.errors import SchemaRegistryError
from flagger.settings import Settings
from flagger.wire.messages import to_epoch_ms
from streamer.registry import SchemaRegistry

__all__ = ["AVRO_SCHEMA", "PayloadWriter"]

AVRO_SCHEMA = files("streamer").joinpath("schemas/transaction.avsc")


class PayloadWriter:
    """Turns JSON messages into the format of the settings.

    The schema is registered under the subject `<topic>-value` if it is not there yet.

    Raises:
        SchemaRegistryError: The registry does not answer.
    """

    def __init__(self, settings: Settings) -> None:
        self._topic = settings.transactions_topic
        self._registry: SchemaRegistry | None = None
        if settings.payload_format == "json":
            return
        self._registry = SchemaRegistry(settings)
        try:
            self._registry.check()
            self._serialize = _serializer(settings.payload_format, self._registry)
        except BaseException:
            self._registry.close()
            raise

    def write(self, messages: Iterable[bytes]) -> Iterator[bytes]:
        """Yield the messages in the format.

        Raises:
            SchemaRegistryError: The registry does not take the schema, or does not answer.
        """
        if self._registry is None:
            yield from messages
            return
        from confluent_kafka.schema_registry.error import SchemaRegistryError as Refused
        from confluent_kafka.serialization import MessageField, SerializationContext

        context = SerializationContext(self._topic, MessageField.VALUE)
        for message in messages:
            fields = msgspec.json.decode(message)
            fields["event_time"] = to_epoch_ms(fields["event_time"])
            try:
                value = self._registry.patiently(
                    "take our schema", partial(self._serialize, fields, context)
                )
            except Refused as error:
                raise SchemaRegistryError(
                    f"The schema registry does not take our schema for {self._topic}-value: "
                    f"{error}. Another schema stands there that does not fit; see "
                    f"docs/payloads.md."
                ) from error
            yield value

    def close(self) -> None:
        """Close the connections."""
        if self._registry is not None:
            self._registry.close()


def _serializer(payload_format: str, registry: SchemaRegistry) -> Callable[[Any, Any], bytes]:
    if payload_format == "avro":
        from confluent_kafka.schema_registry.avro import AvroSerializer

        avro: Callable[[Any, Any], bytes] = AvroSerializer(registry.client, AVRO_SCHEMA.read_text())
        return avro
    from confluent_kafka.schema_registry.protobuf import ProtobufSerializer

    from streamer.payload_proto import transaction_class

    kind = transaction_class()
    protobuf = ProtobufSerializer(kind, registry.client)
    return lambda fields, context: bytes(protobuf(kind(**fields), context))
