"""A real broker with the listeners that banks have: SCRAM, client certificates, OAUTHBEARER."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme
from confluent_kafka.admin import (
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    ResourcePatternType,
    ResourceType,
)
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from deploy.local.kafka import start_kafka, wait_for_kafka
from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.kafka import client_config
from flagger.settings import Settings

USER, PASSWORD = "flagger", "planted-pa55word"
RIGHTLESS, CLIENT = "no-rights", "streamer"
PAGE = Path(__file__).parents[2] / "docs" / "kafka-security.md"
RIGHTS = [
    row
    for row in re.findall(r"^\| (.+) \| (.+) \| (.+) \|$", PAGE.read_text(), re.MULTILINE)
    if re.match(r"(topics?|group|transactional id|cluster)\b", row[1])
]
"""Rows of the page's table of rights: programs, resources, operations."""
PROGRAMS = sorted({who for row in RIGHTS for who in row[0].replace("`", "").split(", ")})
KINDS = {
    "topic": ResourceType.TOPIC,
    "group": ResourceType.GROUP,
    "transactional id": ResourceType.TRANSACTIONAL_ID,
    "cluster": ResourceType.BROKER,
}


@dataclass(frozen=True)
class SecureKafka:
    """Where the broker listens, and the files that belong to it.

    Attributes:
        plain: Address without security, for the test's own administration.
        scram: SASL_SSL with SCRAM-SHA-512.
        mutual: SSL, asks for a client certificate.
        token: SASL_SSL with OAUTHBEARER, as MSK's IAM listener is.
        files: ca.pem, client.pem, client.key; other-ca.pem and stranger.pem/.key of another CA.
    """

    plain: str
    scram: str
    mutual: str
    token: str
    files: Path

    def settings(self, **changes: Any) -> Settings:
        """Return settings for the SCRAM listener, with changes."""
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": self.scram,
            "kafka_security_protocol": "sasl_ssl",
            "kafka_username": USER,
            "kafka_password": PASSWORD,
            "kafka_tls_ca": self.files / "ca.pem",
        }
        return Settings(**(values | changes))

    def mutual_settings(self, **changes: Any) -> Settings:
        """Return settings for the listener that asks for certificates, with changes."""
        values: dict[str, Any] = {
            "kafka_bootstrap_servers": self.mutual,
            "kafka_security_protocol": "ssl",
            "kafka_tls_ca": self.files / "ca.pem",
            "kafka_tls_certificate": self.files / "client.pem",
            "kafka_tls_key": self.files / "client.key",
        }
        return Settings(**(values | changes))


def _write_certificates(folder: Path) -> None:
    folder.mkdir()
    ca, other = trustme.CA(), trustme.CA()
    ca.cert_pem.write_to_path(folder / "ca.pem")
    other.cert_pem.write_to_path(folder / "other-ca.pem")
    server = ca.issue_cert("localhost", "127.0.0.1")
    # A key store in PEM is one file; Java reads keys in PKCS 8 only.
    key = load_pem_private_key(server.private_key_pem.bytes(), None)
    (folder / "server.pem").write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + b"".join(blob.bytes() for blob in server.cert_chain_pems)
    )
    for name, issued in (
        ("client", ca.issue_cert("client.test", common_name=CLIENT)),
        ("stranger", other.issue_cert("client.test", common_name=CLIENT)),
    ):
        issued.private_key_pem.write_to_path(folder / f"{name}.key")
        for blob in issued.cert_chain_pems:
            blob.write_to_path(folder / f"{name}.pem", append=True)


def _listener(name: str, mechanism: str, login: str) -> dict[str, str]:
    """Return the settings of a SASL listener."""
    prefix = f"listener.name.{name}"
    return {
        f"{prefix}.sasl.enabled.mechanisms": mechanism,
        f"{prefix}.{mechanism.lower()}.sasl.jaas.config": f"{login} required;",
    }


def user_of(program: str) -> str:
    """Return the user who has the rights of a program, and no others."""
    return "only-" + program.replace(" ", "-")


def _resources(words: str, settings: Settings) -> Iterator[tuple[ResourceType, str, bool]]:
    """Yield kind, name here, and whether names may go on, of a cell of the table of rights."""
    usual, kind = Settings(), ResourceType.UNKNOWN
    here = {
        getattr(usual, name): getattr(settings, name)
        for name in Settings.model_fields
        if name.endswith("_topic")
    } | {"FLAGGER_ALERTS_GROUP": settings.alerts_group}
    token = r"\b(topic|group|transactional id|cluster)s?\b|`([^`]+)`( \(prefixed)?"
    for found, name, prefixed in re.findall(token, words):
        if found:
            kind = KINDS[found]
            if found == "cluster":
                yield kind, "kafka-cluster", False
        elif name.startswith(usual.consumer_group):
            rest = name.removeprefix(usual.consumer_group)
            yield kind, settings.consumer_group + rest, bool(prefixed)
        else:
            yield kind, here.get(name, name), bool(prefixed)


@pytest.fixture
def as_documented() -> Callable[[str, Settings], Settings]:
    """Give a program's user what docs/kafka-security.md says; return settings of that user."""

    def allow(program: str, settings: Settings) -> Settings:
        rows = [row for row in RIGHTS if program in row[0].replace("`", "").split(", ")]
        assert rows, f"{PAGE.name} says nothing of {program}"
        bindings = [
            AclBinding(
                kind,
                name,
                ResourcePatternType.PREFIXED if prefixed else ResourcePatternType.LITERAL,
                f"User:{user_of(program)}",
                "*",
                AclOperation[re.sub(r"(?<=[a-z])(?=[A-Z])", "_", operation).upper()],
                AclPermissionType.ALLOW,
            )
            for _, resources, operations in rows
            for kind, name, prefixed in _resources(resources, settings)
            # What follows a semicolon is not needed: the right to make topics.
            for operation in re.findall(r"[A-Z]\w+", operations.partition(";")[0])
        ]
        admin = AdminClient(client_config(settings))  # answers come as long as it is held
        for future in admin.create_acls(bindings).values():
            future.result(20)
        return settings.model_copy(update={"kafka_username": user_of(program)})

    return allow


@pytest.fixture(scope="session")
def secure_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    folder = tmp_path_factory.mktemp("secure-kafka")
    files = folder / "tls"
    _write_certificates(files)
    scram, mutual, token = (f"127.0.0.1:{port}" for port in free_ports(3))
    listeners = f"SCRAM://{scram},MUTUAL://{mutual},TOKEN://{token}"
    security = "org.apache.kafka.common.security"
    changes = {
        "listeners": listeners,
        "advertised.listeners": listeners,
        "listener.security.protocol.map": "SCRAM:SASL_SSL,MUTUAL:SSL,TOKEN:SASL_SSL",
        "inter.broker.listener.name": "PLAINTEXT",
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": files / "server.pem",
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": files / "ca.pem",
        "listener.name.mutual.ssl.client.auth": "required",
        # Rights: the broker itself and our clients may do everything, others nothing.
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": f"User:ANONYMOUS;User:{USER};User:{CLIENT}",
        "ssl.principal.mapping.rules": "RULE:^CN=([^,]+),.*$/$1/,DEFAULT",
        **_listener("scram", "SCRAM-SHA-512", f"{security}.scram.ScramLoginModule"),
        # Kafka's validator of unsigned tokens: MSK's own is not to be had outside AWS.
        **_listener("token", "OAUTHBEARER", f"{security}.oauthbearer.OAuthBearerLoginModule"),
    }
    names = (USER, RIGHTLESS, *map(user_of, PROGRAMS))
    users = [f"SCRAM-SHA-512=[name={name},password={PASSWORD}]" for name in names]
    server, plain = start_kafka(
        folder / "kafka", folder / "logs", changes=changes, scram_users=users
    )
    try:
        wait_for_kafka(server, plain)
        yield SecureKafka(plain, scram, mutual, token, files)
    finally:
        server.stop()


@pytest.fixture
def secured_settings(stack: LocalStack, secure_kafka: SecureKafka) -> Any:
    """Return a function: settings with the stack's Triton and Valkey and a secured Kafka."""

    def make(security: Settings) -> Settings:
        base = stack.settings()
        own = {name: getattr(security, name) for name in security.model_fields_set}
        return base.model_copy(update=own)

    return make
