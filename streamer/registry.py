"""The schema registry: which schema a message was written with."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from flagger.errors import BadMessageError, ConfigurationError, SchemaRegistryError
from flagger.settings import Settings

__all__ = ["SchemaRegistry", "WriterSchema"]

_ATTEMPTS = 5
_PAUSE_S = 1.0
_TIMEOUT_S = 5.0
_NOT_FOUND = 404


def _http_errors() -> list[type[Exception]]:
    """Return the roots of the errors of the HTTP library that the client uses; it depends."""
    found: list[type[Exception]] = [httpx.HTTPError]
    with suppress(ImportError):
        import httpx2

        found.append(httpx2.HTTPError)
    return found


@dataclass(frozen=True, slots=True)
class WriterSchema:
    """A schema of the registry.

    Attributes:
        kind: `AVRO`, `PROTOBUF` or `JSON`.
        text: The schema as it was registered.
    """

    kind: str
    text: str


class SchemaRegistry:
    """Asks for schemas. Who asks remembers them: an id never changes its meaning.

    Args:
        settings: Address and credentials; the address must be set.

    Raises:
        ConfigurationError: The dependency group `registry` is not installed, or the address is bad.
    """

    def __init__(self, settings: Settings) -> None:
        try:
            from confluent_kafka.schema_registry import SchemaRegistryClient
            from confluent_kafka.schema_registry.error import SchemaRegistryError as Refused
        except ImportError as error:
            raise ConfigurationError(
                "FLAGGER_SCHEMA_REGISTRY_URL needs the client of the schema registry: install the "
                "dependency group `registry`."
            ) from error
        self._refused: type[Exception] = Refused
        self._unreachable: tuple[type[Exception], ...] = (OSError, *_http_errors())
        self._url = settings.schema_registry_url or ""
        config: dict[str, Any] = {"url": self._url, "timeout": _TIMEOUT_S, "max.retries": 0}
        if settings.schema_registry_password is not None:
            password = settings.schema_registry_password.get_secret_value()
            config["basic.auth.user.info"] = f"{settings.schema_registry_username}:{password}"
        if settings.schema_registry_ca is not None:
            config["ssl.ca.location"] = str(settings.schema_registry_ca)
        try:
            self.client: Any = SchemaRegistryClient(config)
        except (ValueError, TypeError) as error:
            raise ConfigurationError(f"FLAGGER_SCHEMA_REGISTRY_URL: {error}.") from error

    def check(self) -> None:
        """Raise SchemaRegistryError unless the registry answers us."""
        try:
            self.client.get_subjects()
        except (self._refused, *self._unreachable) as error:
            raise self._error("list its subjects", error) from error

    def find(self, schema_id: int) -> WriterSchema:
        """Return a schema; tries again for a while if the registry is away.

        Raises:
            BadMessageError: The registry has no such schema.
            SchemaRegistryError: It does not answer, or refuses us.
        """
        what = f"tell schema {schema_id}"
        try:
            found = self.patiently(what, lambda: self.client.get_schema(schema_id))
        except self._refused as error:
            if getattr(error, "http_status_code", None) == _NOT_FOUND:
                raise BadMessageError(
                    f"was written with schema {schema_id}, which the registry does not have"
                ) from error
            raise self._error(what, error) from error
        return WriterSchema(found.schema_type or "AVRO", found.schema_str)

    def patiently(self, what: str, ask: Callable[[], Any]) -> Any:
        """Return what `ask` returns; tries again for a while if the registry is away.

        Args:
            what: Ends the sentence "The schema registry did not ..." in an error.
            ask: Calls the client; what the registry refuses is raised as it is.

        Raises:
            SchemaRegistryError: It does not answer.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return ask()
            except self._unreachable as error:
                if attempt == _ATTEMPTS - 1:
                    raise self._error(what, error) from error
                time.sleep(_PAUSE_S)
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def _error(self, what: str, error: Exception) -> SchemaRegistryError:
        return SchemaRegistryError(
            f"The schema registry at {self._url} did not {what}: {error}. Nothing is lost: start "
            f"this process again once it answers. Check FLAGGER_SCHEMA_REGISTRY_URL, _USERNAME, "
            f"_PASSWORD and _CA."
        )
