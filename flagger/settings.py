"""Settings: read once at the process edge from FLAGGER_* variables, then frozen.

Each field states its unit and default. A misspelt FLAGGER_* variable is an error, because a
typo that silently means "default" is how payments end up on the wrong broker.

FLAGGER_<SETTING>_FILE names a file that holds the setting's value: secrets then stay out of the
environment, as Docker and Kubernetes mount them.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from flagger.errors import ConfigurationError

__all__ = ["ENV_PREFIX", "Settings", "load_settings"]

ENV_PREFIX = "FLAGGER_"
_FILE = "_FILE"


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

    explain_timeout_ms: int = Field(default=250, ge=0)
    """Longest that the streamer waits for the reasons of a batch's flagged transactions: about
    1 ms of a core each. 0: do not ask; decisions then carry the policy's reason alone."""
    triton_timeout_ms: int = Field(default=2_000, ge=1)
    """The streamer's limit for one request to Triton."""
    max_batch_rows: int = Field(default=4_096, ge=1, le=65_536)
    """Most rows in one request to Triton; the model's max_batch_size must not be smaller."""
    max_in_flight: int = Field(default=4, ge=1, le=64)
    """Most requests to Triton that the streamer has under way."""
    streamer_fallback: Literal["wait", "rules"] = "wait"
    """What the streamer does while Triton is away: the log waits, or rules decide, marked so."""
    streamer_fallback_after_ms: int = Field(default=2_000, ge=0)
    """How long Triton must have been away before `streamer_fallback=rules` takes effect."""
    fallback_rules: Path | None = None
    """TOML file of the rules for the fallback `rules` of streamer and gateway; None: ours."""
    latency_target_ms: int = Field(default=100, ge=2, le=10_000)
    """Event to committed decision that the streamer aims at: a Kafka transaction is committed at
    the latest after half of it, however much there is to do."""
    state_flush_interval_ms: int = Field(default=1_000, ge=10)
    """How often changed entity records are written to Valkey."""

    max_customers_in_memory: int = Field(default=1_000_000, ge=1_000)
    """Customers that one streamer keeps in memory, about 1 KiB each; others come from Valkey."""

    gateway_deadline_ms: int = Field(default=100, ge=5)
    """Budget of one synchronous request; callers may ask for less."""
    gateway_batch_deadline_ms: int = Field(default=500, ge=5)
    """Budget of one synchronous batch."""
    gateway_max_in_flight: int = Field(default=32, ge=1, le=10_000)
    """Most scoring requests at a time in one gateway process; more are refused at once."""
    gateway_fallback: Literal["review", "rules", "approve", "decline"] = "review"
    """What decides where the model cannot be asked in time."""
    gateway_drain_ms: int = Field(default=2_000, ge=0, le=600_000)
    """How long a gateway still answers after SIGTERM, not ready, telling callers to go elsewhere;
    0: stop at once with what is under way."""
    gateway_auth: Literal["required", "off"] = "required"
    """`off` lets everybody in: for development only."""
    gateway_keys_file: Path = Path("gateway-keys.json")
    """API keys, hashed; `flagger keys` writes it, gateways follow it."""
    gateway_jwt_jwks: str | None = None
    """Public keys (JWKS) of an identity provider: a file or an https:// URL; None: no JWT."""
    gateway_jwt_issuer: str | None = None
    """The `iss` that a JWT must have."""
    gateway_jwt_audience: str | None = None
    """The `aud` that a JWT must have."""
    gateway_audit_log: Path | None = None
    """File of administrative actions at the gateway, one JSON object a line; None: its log."""
    gateway_tls_certificate: Path | None = None
    """PEM chain with which the gateway serves HTTPS; None: plain HTTP."""
    gateway_tls_key: Path | None = None
    """PEM key of `gateway_tls_certificate`."""
    gateway_tls_client_ca: Path | None = None
    """PEM authorities of client certificates, which callers then must have (mTLS)."""

    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_ssl"] = "plaintext"
    """How Kafka is talked to; `sasl_ssl` needs mechanism, user and password."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    """How the user proves itself to Kafka."""
    kafka_username: str | None = None
    """User for `sasl_ssl`."""
    kafka_password: SecretStr | None = None
    """Password for `sasl_ssl`; better FLAGGER_KAFKA_PASSWORD_FILE."""
    kafka_tls_ca: Path | None = None
    """PEM authorities of Kafka's certificate; None: the system's."""
    kafka_tls_certificate: Path | None = None
    """PEM certificate of ours, where Kafka asks for one (mTLS)."""
    kafka_tls_key: Path | None = None
    """PEM key of `kafka_tls_certificate`."""

    @model_validator(mode="after")
    def _relations(self) -> Self:
        if self.latency_target_ms / 2 > self.state_flush_interval_ms:
            msg = (
                f"half of latency_target_ms ({self.latency_target_ms}) must not exceed "
                f"state_flush_interval_ms ({self.state_flush_interval_ms})"
            )
            raise ValueError(msg)
        if (self.gateway_tls_certificate is None) != (self.gateway_tls_key is None):
            raise ValueError("gateway_tls_certificate and gateway_tls_key need each other")
        if self.gateway_tls_client_ca is not None and self.gateway_tls_certificate is None:
            raise ValueError("gateway_tls_client_ca needs gateway_tls_certificate")
        if self.kafka_security_protocol == "sasl_ssl" and not (
            self.kafka_username and self.kafka_password
        ):
            raise ValueError("kafka_security_protocol=sasl_ssl needs kafka_username and _password")
        if self.gateway_jwt_jwks and not (self.gateway_jwt_issuer and self.gateway_jwt_audience):
            raise ValueError("gateway_jwt_jwks needs gateway_jwt_issuer and gateway_jwt_audience")
        return self


def load_settings() -> Settings:
    """Read the settings from the environment.

    Raises:
        ConfigurationError: A value is invalid, or a FLAGGER_* variable has no such setting.
    """
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields}
    from_files = _read_files(known)
    unknown = sorted(
        n
        for n in os.environ
        if n.upper().startswith(ENV_PREFIX) and n.upper() not in known | from_files.keys()
    )
    if unknown:
        raise ConfigurationError(
            f"No such setting: {', '.join(unknown)}. Known settings: {', '.join(sorted(known))}."
        )
    values = {n.removesuffix(_FILE)[len(ENV_PREFIX) :].lower(): v for n, v in from_files.items()}
    try:
        return Settings(**values)  # type: ignore[arg-type]  # texts, as in the environment
    except ValidationError as error:
        details = "; ".join(
            f"{ENV_PREFIX}{'_'.join(str(part) for part in e['loc']).upper()}: {e['msg']}"
            for e in error.errors()
        )
        raise ConfigurationError(f"Invalid settings: {details}.") from error


def _read_files(known: set[str]) -> dict[str, str]:
    """Return variable -> content of the file that it names, for FLAGGER_<SETTING>_FILE."""
    found = {}
    for variable, path in os.environ.items():
        name = variable.upper()
        if name in known or not name.endswith(_FILE) or name.removesuffix(_FILE) not in known:
            continue
        try:
            found[name] = Path(path).read_text().strip()
        except OSError as error:
            raise ConfigurationError(f"{variable} names no readable file: {error}.") from error
    return found
