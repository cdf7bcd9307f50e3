"""Settings: read once at the process edge from FLAGGER_* variables, then frozen.

Each field states its unit and default. A misspelt FLAGGER_* variable is an error, because a
typo that silently means "default" is how payments end up on the wrong broker.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flagger.errors import ConfigurationError

__all__ = ["ENV_PREFIX", "Settings", "load_settings"]

ENV_PREFIX = "FLAGGER_"


class Settings(BaseSettings):
    """Every setting of every service; unknown names are refused by `load_settings`."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, frozen=True, extra="forbid")

    kafka_bootstrap_servers: str | None = None
    """host:port list of Kafka; None: the embedded broker."""
    triton_url: str | None = None
    """host:port of Triton's gRPC endpoint; None: the embedded server."""
    valkey_url: str | None = None
    """valkey://host:port/db; None: the embedded server."""

    transactions_topic: str = "transactions"
    decisions_topic: str = "decisions"
    alerts_topic: str = "alerts"
    labels_topic: str = "labels"
    activity_topic: str = "terminal-activity"
    """What the streamers tell each other: transactions per terminal and half day."""
    dead_letter_topic: str = "transactions.dead-letter"
    partitions: int = Field(default=4, ge=1, le=1024)
    """Partitions of the transactions, decisions and alerts topics when we create them."""
    consumer_group: str = "fraud-flagger"
    """The streamers' group: they share the partitions, and one store."""
    instance: str = "0"
    """Name of this streamer, unique in its group: a restart under the same name is a takeover."""

    model_repository: Path = Path("model_repository")
    """Folder of the Triton model repository, for policy and feature contract."""
    streamer_model: Literal["fraud_fil", "fraud_onnx"] = "fraud_fil"
    """Model entry that the streamer asks for: FIL is the faster one for large batches."""
    gateway_model: Literal["fraud_fil", "fraud_onnx"] = "fraud_onnx"
    """Model entry that the gateway asks for: ONNX Runtime is the faster one for single rows."""

    triton_timeout_ms: int = Field(default=2_000, ge=1)
    """The streamer's limit for one request to Triton."""
    max_batch_rows: int = Field(default=4_096, ge=1, le=65_536)
    """Most rows in one request to Triton; the model's max_batch_size must not be smaller."""
    max_in_flight: int = Field(default=4, ge=1, le=64)
    """Most requests to Triton that the streamer has under way."""
    commit_interval_ms: int = Field(default=100, ge=1, le=10_000)
    """Longest time that finished decisions wait for their Kafka transaction's commit."""
    state_flush_interval_ms: int = Field(default=1_000, ge=10)
    """How often changed entity records are written to Valkey."""

    gateway_deadline_ms: int = Field(default=100, ge=5)
    """Budget of one synchronous request."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.commit_interval_ms > self.state_flush_interval_ms:
            msg = (
                f"commit_interval_ms ({self.commit_interval_ms}) must not exceed "
                f"state_flush_interval_ms ({self.state_flush_interval_ms})"
            )
            raise ValueError(msg)
        return self


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: A value is invalid, or a FLAGGER_* variable has no such setting.
    """
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    unknown = sorted(
        n for n in os.environ if n.upper().startswith(ENV_PREFIX) and n.upper() not in known
    )
    if unknown:
        raise ConfigurationError(
            f"No such setting: {', '.join(unknown)}. Known settings: {', '.join(sorted(known))}."
        )
    try:
        return Settings()
    except ValidationError as error:
        details = "; ".join(
            f"{ENV_PREFIX}{'_'.join(str(part) for part in e['loc']).upper()}: {e['msg']}"
            for e in error.errors()
        )
        raise ConfigurationError(f"Invalid settings: {details}.") from error
