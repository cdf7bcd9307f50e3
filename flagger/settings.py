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

    alerts_group: str = "flagger-alerts"
    """The group of `flagger alerts run`: its committed offsets say what receivers were told."""
    alerts_file: Path = Path("alerts.toml")
    """Who is told of which alerts, TOML; see docs/alerts.md."""

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
    rulebook: Path | None = None
    """TOML file of lists and rules beside the model, followed by streamer and gateway; None:
    none. See docs/rules.md."""
    brake_decline_share: float = Field(default=0.05, gt=0, le=1)
    """Most declines among a process's last decisions; beyond, declines become reviews. 1: off."""
    brake_flag_share: float = Field(default=0.25, gt=0, le=1)
    """The same for reviews and declines together; reviews stay reviews. 1: off."""
    brake_window_decisions: int = Field(default=10_000, ge=10, le=10_000_000)
    """How many last decisions the two shares are taken of."""
    brake_min_decisions: int = Field(default=1_000, ge=1)
    """The shares are taken of at least so many decisions: few early declines engage nothing."""
    drift_rows_per_s: int = Field(default=200, ge=0, le=10_000)
    """Most transactions a second that a streamer looks at for drift, evenly spread; 0: none."""
    drift_psi_limit: float = Field(default=0.1, gt=0)
    """From where on the PSI of a feature or of the score is an alarm."""
    drift_unknown_limit: float = Field(default=0.01, gt=0, le=1)
    """How far the share of `unknown` in a categorical field may rise above the reference's."""
    shadow_rows_per_s: int = Field(default=500, ge=1, le=100_000)
    """Most rows a second that a streamer or a gateway sends to the shadow, while there is one."""
    canary_timeout_ms: int = Field(default=50, ge=1, le=10_000)
    """How long the canary may take to answer (in the streamer: after the live version's answer to
    the same batch); then the live version decides."""
    latency_target_ms: int = Field(default=100, ge=2, le=10_000)
    """Event to committed decision that the streamer aims at: a Kafka transaction is committed at
    the latest after half of it, however much there is to do."""
    state_flush_interval_ms: int = Field(default=1_000, ge=10)
    """How often changed entity records are written to Valkey."""

    start_patience_s: int = Field(default=300, ge=0)
    """How long a streamer waits at its start for Kafka and Valkey before it ends with an error.
    Meanwhile it is alive and not ready. Wrong credentials end it at once."""

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
    gateway_jwt_rate_per_s: float | None = Field(default=None, gt=0)
    """Requests per second of one JWT subject, over all gateways together; None: no limit."""
    gateway_audit_log: Path | None = None
    """File of administrative actions at the gateway, one JSON object a line; None: its log."""
    gateway_tls_certificate: Path | None = None
    """PEM chain with which the gateway serves HTTPS; None: plain HTTP."""
    gateway_tls_key: Path | None = None
    """PEM key of `gateway_tls_certificate`."""
    gateway_tls_client_ca: Path | None = None
    """PEM authorities of client certificates, which callers then must have (mTLS)."""

    case_store_url: SecretStr = SecretStr("sqlite:///cases.db")
    """SQLAlchemy URL of the review desk's cases: a SQLite file, or
    postgresql+psycopg://user:password@host/database (better as FLAGGER_CASE_STORE_URL_FILE)."""
    desk_claim_minutes: int = Field(default=15, ge=1, le=1_440)
    """How long a case stays with the analyst who claimed it; then others may take it."""
    desk_history_payments: int = Field(default=20, ge=0, le=100)
    """Newest payments of each customer and terminal, flagged or not, that the desk keeps in Valkey
    to show beside a case; 0: none, and the desk needs no Valkey."""
    desk_history_days: int = Field(default=30, ge=1, le=400)
    """How long these are kept after the last of them."""
    desk_users_file: Path = Path("desk-users.json")
    """The desk's users with hashed passwords; `flagger desk add-user` writes it."""
    desk_session_hours: int = Field(default=10, ge=1, le=168)
    """How long a login at the desk lasts: a working day."""
    desk_tls_certificate: Path | None = None
    """PEM chain with which the desk serves HTTPS; None: plain HTTP, for a proxy before it."""
    desk_tls_key: Path | None = None
    """PEM key of `desk_tls_certificate`."""

    revision: str = "unknown"
    """Commit that this was built from; the image sets it, `flagger_build_info` shows it."""

    otlp_endpoint: str | None = None
    """URL of an OpenTelemetry collector (http://host:4318) that gets traces; None: no traces."""
    trace_share: float = Field(default=0.01, ge=0.0, le=1.0)
    """Share of the gateway's requests that begin a trace; a caller's own trace is always kept."""

    schema_registry_url: str | None = None
    """Schema registry, Confluent's interface. With it the streamer also reads transactions in Avro
    and Protobuf (`docs/payloads.md`); None: JSON only."""
    schema_registry_username: str | None = None
    """User at the registry, for HTTP basic authentication."""
    schema_registry_password: SecretStr | None = None
    """Password at the registry; better FLAGGER_SCHEMA_REGISTRY_PASSWORD_FILE."""
    schema_registry_ca: Path | None = None
    """PEM authorities of the registry's certificate; None: the system's."""
    payload_format: Literal["json", "avro", "protobuf"] = "json"
    """What `flagger produce` writes; `avro` and `protobuf` need `schema_registry_url`."""

    decision_table: str | None = None
    """DynamoDB table in which the gateway also looks for decisions (`docs/aws.md`); None: none."""
    decision_table_region: str | None = None
    """AWS region of `decision_table`; None: the AWS environment's."""

    kafka_security_protocol: Literal["plaintext", "ssl", "sasl_ssl"] = "plaintext"
    """How Kafka is talked to; `sasl_ssl` needs a mechanism and what that needs."""
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "AWS_MSK_IAM"] = (
        "SCRAM-SHA-512"
    )
    """How we prove to Kafka who we are: user and password, or AWS credentials (AWS_MSK_IAM)."""
    kafka_aws_region: str | None = None
    """Region of the MSK cluster, for AWS_MSK_IAM; None: the AWS environment's."""
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
        if (self.desk_tls_certificate is None) != (self.desk_tls_key is None):
            raise ValueError("desk_tls_certificate and desk_tls_key need each other")
        if (
            self.kafka_security_protocol == "sasl_ssl"
            and self.kafka_sasl_mechanism != "AWS_MSK_IAM"
            and not (self.kafka_username and self.kafka_password)
        ):
            raise ValueError("kafka_security_protocol=sasl_ssl needs kafka_username and _password")
        if (self.kafka_tls_certificate is None) != (self.kafka_tls_key is None):
            raise ValueError("kafka_tls_certificate and kafka_tls_key need each other")
        if self.payload_format != "json" and self.schema_registry_url is None:
            raise ValueError(f"payload_format={self.payload_format} needs schema_registry_url")
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
