"""Every error that Fraud Flagger raises on purpose.

    FlaggerError
    ├── ConfigurationError      the operator must change a setting, a file or a command
    │   └── ContractMismatchError   model and code disagree about the features
    ├── DataError               a file for training or replay has a bad cell, column or layout
    ├── BadMessageError         one message can never be decided: it goes to the dead-letter topic
    ├── ModelError              the model server answered with an error
    │   ├── ModelUnavailableError   retry: down, starting, overloaded or past its deadline
    │   └── ModelRefusedError       do not retry the same rows: the server refuses this request
    ├── StateStoreError         retry: Valkey is down or slow
    │   └── DecisionStoreError      retry: DynamoDB, with the archived decisions, is down or slow
    ├── StateLostError          end and start again: what was stored is gone, or somebody else's
    ├── CaseStoreError          retry: the desk's database is down, slow or of another release
    ├── SchemaRegistryError     end and start again: the registry did not tell a schema
    ├── StackError              a process of the embedded stack did not start, answer or stop
    │   └── BrokerAwayError         retry: Kafka does not answer, or not yet in full
    ├── ClusterError            a Dask cluster for training is away, or lost its workers
    ├── GrafanaError            Grafana is away, denies the token or refuses a board
    └── PublishError            an export was refused: parity, checksum or layout is wrong

Callers pass facts; the class writes the sentence: what happened, where, and what to do.
`exit_code` is what the command line ends with (2 is left to usage errors, as click has it).
"""

from __future__ import annotations

__all__ = [
    "BadMessageError",
    "BrokerAwayError",
    "CaseStoreError",
    "ClusterError",
    "ConfigurationError",
    "ContractMismatchError",
    "DataError",
    "DecisionStoreError",
    "FlaggerError",
    "GrafanaError",
    "ModelError",
    "ModelRefusedError",
    "ModelUnavailableError",
    "PublishError",
    "SchemaRegistryError",
    "StackError",
    "StateLostError",
    "StateStoreError",
]


class FlaggerError(Exception):
    """The root of all errors of this project; its text is meant for a person."""

    exit_code = 1

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the text and the fields on the way from a worker process, whatever `__init__` asks.

        The default way calls `__init__` with the text, which most of these classes do not take.
        """
        return _restored, (type(self), self.args, dict(self.__dict__))


def _restored(
    kind: type[FlaggerError], args: tuple[object, ...], fields: dict[str, object]
) -> FlaggerError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


class ConfigurationError(FlaggerError):
    """A setting, file or command must be changed by the operator; retrying cannot help."""

    exit_code = 3


class ContractMismatchError(ConfigurationError):
    """The model was trained on other features than this code computes."""

    def __init__(self, *, model_hash: str, code_hash: str, source: str) -> None:
        super().__init__(
            f"The model in {source} was trained on feature contract {model_hash}, but this code "
            f"computes contract {code_hash}. Train and export a model with this code, or run the "
            f"release of Fraud Flagger that the model was exported with."
        )
        self.model_hash = model_hash
        self.code_hash = code_hash


class DataError(FlaggerError):
    """A data file cannot be used as it is."""

    exit_code = 4

    def __init__(
        self,
        *,
        file: str,
        problem: str,
        remedy: str,
        row: int | None = None,
        column: str | None = None,
        value: object = None,
    ) -> None:
        where = f"{file}"
        if row is not None:
            where += f", row {row:,}"
        if column is not None:
            where += f", column {column!r}"
        if value is not None:
            where += f", value {value!r}"
        super().__init__(f"{where}: {problem}. {remedy}")
        self.file = file
        self.row = row
        self.column = column
        self.value = value


class BadMessageError(FlaggerError):
    """One message can never be decided; it belongs in the dead-letter topic.

    Attributes:
        field: Name of the offending field, or None when the message is not an object at all.
        reason: One sentence for the dead-letter header and for an HTTP 422 answer.
    """

    def __init__(self, reason: str, *, field: str | None = None) -> None:
        super().__init__(f"{field}: {reason}" if field else reason)
        self.field = field
        self.reason = reason


class ModelError(FlaggerError):
    """The model server answered a request with an error."""

    exit_code = 5


class ModelUnavailableError(ModelError):
    """The model server is down, starting, overloaded or too slow; the same rows may be retried."""


class ModelRefusedError(ModelError):
    """The model server refuses these rows or this model; sending them again changes nothing."""


class StateStoreError(FlaggerError):
    """The entity-state store is down, slow or holds something this code cannot read."""

    exit_code = 6


class DecisionStoreError(StateStoreError):
    """The table of archived decisions is away, slow, denied or holds what we cannot read."""


class StateLostError(FlaggerError):
    """The store lost what was written, or another streamer took over; this process must end."""

    exit_code = 9


class CaseStoreError(FlaggerError):
    """The database of the review desk's cases did not do what it was asked; try again."""

    exit_code = 11


class SchemaRegistryError(FlaggerError):
    """The schema registry is away or refuses us; without its schema a message cannot be read."""

    exit_code = 12


class StackError(FlaggerError):
    """A process of the embedded stack did not start, answer in time, or stop."""

    exit_code = 7


class BrokerAwayError(StackError):
    """Kafka does not answer, or cannot do yet what it is asked for; trying again may help."""


class PublishError(FlaggerError):
    """A model version was not published: parity, checksums or layout are wrong."""

    exit_code = 8


class ClusterError(FlaggerError):
    """A Dask cluster for training is away, or lost its workers; the same command may be retried."""

    exit_code = 13


class GrafanaError(FlaggerError):
    """Grafana is away, denies the token, or refuses a board."""

    exit_code = 10
