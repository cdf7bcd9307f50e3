"""Right credentials work end to end; wrong ones end with a clear error within seconds."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger import msk_iam
from flagger.cli import cli
from flagger.errors import ConfigurationError, StackError
from flagger.kafka import client_config, producer_config
from flagger.kafka_access import require_access
from flagger.settings import ENV_PREFIX, Settings
from gateway.producer import TransactionLog, TransactionLogError
from loadtest.crash_world import CrashWorld
from review.database import migrate, open_engine
from streamer.topics import ensure_topics
from train.simulate import SimulationConfig, simulate

pytestmark = pytest.mark.stack

SIZE = SimulationConfig(customers=100, terminals=60, days=30, start=date(2026, 1, 1), seed=5)
SOON_S = 12.0
"""Wrong settings are known by then; seconds on an idle machine, more while all tests run."""
RIGHTLESS = "no-rights"


@pytest.mark.timeout(150)
@pytest.mark.parametrize("listener", ["scram", "client-certificate"])
def test_right_credentials_stream_end_to_end(
    stack: LocalStack,
    own_valkey: LocalStack,
    secure_kafka: Any,
    secured_settings: Callable[[Settings], Settings],
    tmp_path: Path,
    listener: str,
) -> None:
    # Producer, administration, streamer, transactions and readers: all of them with credentials.
    made = secure_kafka.settings() if listener == "scram" else secure_kafka.mutual_settings()
    valkey = {"valkey_url": own_valkey.addresses.valkey_url}
    history = pa.Table.from_batches(simulate(SIZE))
    settings = secured_settings(made).model_copy(update=valkey)
    with CrashWorld(settings, f"secure-{listener}", 0, tmp_path) as world:
        world.feed(history.to_batches())
        world.drain(world.start()).stop()
        verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows


@pytest.mark.timeout(150)
def test_the_documented_rights_are_enough_for_a_streamer(
    stack: LocalStack,
    own_valkey: LocalStack,
    secure_kafka: Any,
    secured_settings: Callable[[Settings], Settings],
    as_documented: Callable[[str, Settings], Settings],
    tmp_path: Path,
) -> None:
    # The world itself (topics, transactions, readers) has all rights.
    valkey = {"valkey_url": own_valkey.addresses.valkey_url}
    history = pa.Table.from_batches(simulate(SIZE))
    settings = secured_settings(secure_kafka.settings()).model_copy(update=valkey)
    with CrashWorld(settings, "least", 0, tmp_path) as world:
        all_rights = world.settings
        world.feed(history.to_batches())
        world.settings = as_documented("streamer", all_rights)
        ensure_topics(world.settings)
        streamer = world.start()
        world.settings = all_rights
        world.drain(streamer).stop()
        verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows
    assert world.restarts == 0


def wrong(secure: Any) -> dict[str, tuple[Settings, str]]:
    """Return name -> settings that cannot work, and what the error says of them."""
    files, user = secure.files, secure.settings
    mutual = secure.mutual_settings
    stranger = {
        "kafka_tls_certificate": files / "stranger.pem",
        "kafka_tls_key": files / "stranger.key",
    }
    nobody = {"kafka_tls_certificate": None, "kafka_tls_key": None}
    return {
        "password": (user(kafka_password="wrong-one"), "invalid credentials"),
        "user": (user(kafka_username="nobody"), "as user nobody by SCRAM-SHA-512"),
        "mechanism": (user(kafka_sasl_mechanism="PLAIN"), "supported mechanisms: SCRAM-SHA-512"),
        "authority": (user(kafka_tls_ca=files / "other-ca.pem"), "certificate verify failed"),
        "no-authority": (user(kafka_tls_ca=None), "certificate verify failed"),
        "plain-to-tls": (
            user(kafka_security_protocol="plaintext"),
            "closes them at once. Check FLAGGER_KAFKA_SECURITY_PROTOCOL",
        ),
        "tls-to-plain": (user(kafka_bootstrap_servers=secure.plain), "PLAINTEXT broker listener"),
        "no-sasl": (mutual(kafka_bootstrap_servers=secure.scram), "closes them at once"),
        "no-certificate": (mutual(**nobody), "SSL alert"),
        "foreign-certificate": (mutual(**stranger), "FLAGGER_KAFKA_TLS_CERTIFICATE"),
        "other-key": (mutual(kafka_tls_key=files / "stranger.key"), "key values mismatch"),
        "no-file": (user(kafka_tls_ca=files / "absent.pem"), "FLAGGER_KAFKA_TLS_CA names no file"),
    }


NAMES = (
    "password", "user", "mechanism", "authority", "no-authority", "plain-to-tls", "tls-to-plain",
    "no-sasl", "no-certificate", "foreign-certificate", "other-key", "no-file",
)  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_wrong_credentials_end_with_a_clear_error(secure_kafka: Any, name: str) -> None:
    settings, words = wrong(secure_kafka)[name]
    start_s = time.monotonic()
    with pytest.raises(ConfigurationError) as caught:
        ensure_topics(settings)
    assert time.monotonic() - start_s < SOON_S
    assert words in str(caught.value)
    assert "wrong-one" not in str(caught.value)
    assert "planted-pa55word" not in str(caught.value)


# Apprise's mail plug-in tries for `imghdr`, of which Python 3.11 warns.
@pytest.mark.filterwarnings("ignore:'imghdr' is deprecated")
@pytest.mark.parametrize(
    "command",
    [
        "desk consume --metrics-port 0",
        "alerts run --metrics-port 0 --file FOLDER/alerts.toml",
        "drift watch --metrics-port 0",
        "drift labels",
        "dead-letters list",
        "smoke --transactions 1",
        "produce --data FOLDER/payments.parquet",
    ],
)
def test_a_command_with_a_wrong_password_ends_and_says_so(
    secure_kafka: Any, tmp_path: Path, command: str
) -> None:
    """A client library alone would wait for ever, as for a broker that is away."""
    store = f"sqlite:///{tmp_path / 'cases.db'}"
    migrate(open_engine(store))
    (tmp_path / "url").write_text("json://127.0.0.1:9/")
    (tmp_path / "alerts.toml").write_text(
        f'[receiver.people]\nurl_file = "{tmp_path / "url"}"\n'
        '[[rule]]\nname = "all"\nreceivers = ["people"]\n'
    )
    pq.write_table(pa.Table.from_batches(simulate(SIZE)), tmp_path / "payments.parquet")
    settings = secure_kafka.settings()
    variables = {
        "kafka_bootstrap_servers": settings.kafka_bootstrap_servers,
        "kafka_security_protocol": settings.kafka_security_protocol,
        "kafka_username": settings.kafka_username,
        "kafka_password": "wrong-one",
        "kafka_tls_ca": str(settings.kafka_tls_ca),
        "case_store_url": store,
        "desk_history_payments": "0",
        "triton_url": "127.0.0.1:9",
        "valkey_url": "valkey://127.0.0.1:9/0",
    }
    environment = {f"{ENV_PREFIX}{name.upper()}": value for name, value in variables.items()}
    start_s = time.monotonic()
    done = CliRunner(env=environment).invoke(cli, command.replace("FOLDER", str(tmp_path)).split())
    assert time.monotonic() - start_s < SOON_S
    assert isinstance(done.exception, ConfigurationError), done.output
    assert done.exception.exit_code == 3
    assert "invalid credentials" in str(done.exception)
    assert "wrong-one" not in f"{done.exception}{done.output}"


def test_a_broker_that_is_away_is_no_refusal() -> None:
    (port,) = free_ports(1)
    settings = Settings(kafka_bootstrap_servers=f"127.0.0.1:{port}")
    require_access(settings, AdminClient, KafkaException)


def test_a_user_without_rights_is_told_so(secure_kafka: Any) -> None:
    settings = secure_kafka.settings(
        kafka_username=RIGHTLESS, transactions_topic="unknown-to-the-rightless"
    )
    with pytest.raises(StackError, match=r"TOPIC_AUTHORIZATION_FAILED.*this user's rights"):
        ensure_topics(settings)


@pytest.mark.anyio
async def test_the_gateway_says_why_it_is_not_ready(secure_kafka: Any) -> None:
    log = TransactionLog(secure_kafka.settings(kafka_password="wrong-one"))
    said = ""
    try:
        for _ in range(5):  # the first probe may end before the refusal has come
            with pytest.raises(TransactionLogError) as caught:
                await log.check(1.0)
            said = str(caught.value)
            if "invalid credentials" in said:
                break
    finally:
        await log.close()
    assert "invalid credentials" in said
    assert "wrong-one" not in said


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


def unsigned(name: str) -> str:
    """Return a token of the kind that Kafka's test validator accepts (RFC 7515, alg none)."""
    now_s = int(time.time())
    parts = [{"alg": "none"}, {"sub": name, "iat": now_s, "exp": now_s + 900}]
    coded = [base64.urlsafe_b64encode(json.dumps(p).encode()).rstrip(b"=") for p in parts]
    return b".".join([*coded, b""]).decode()


def test_tokens_reach_the_broker_from_every_kind_of_client(
    secure_kafka: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The signer's token is for AWS alone; what is tested here is that our clients, as MSK's IAM
    # listener wants it, fetch a token by the callback and use it: also those that never poll.
    asked: list[str | None] = []

    def fake_callback(region: str | None) -> msk_iam.TokenCallback:
        def make(_config: str) -> tuple[str, float]:
            asked.append(region)
            return unsigned("flagger"), time.time() + 900

        return make

    monkeypatch.setattr("flagger.kafka.token_callback", fake_callback)
    settings = secure_kafka.settings(
        kafka_bootstrap_servers=secure_kafka.token,
        kafka_sasl_mechanism="AWS_MSK_IAM",
        kafka_aws_region="eu-central-1",
        kafka_username=None,
        kafka_password=None,
        transactions_topic="token-transactions",
    )
    ensure_topics(settings)
    producer = Producer(producer_config(settings) | {"transactional.id": "token"})
    producer.init_transactions(20)
    producer.begin_transaction()
    producer.produce("token-transactions", b"{}")
    producer.commit_transaction(20)
    producer.close()
    reader = Consumer(
        client_config(settings) | {"group.id": "token", "auto.offset.reset": "earliest"}
    )
    reader.subscribe(["token-transactions"])
    message = reader.poll(20)
    reader.close()
    assert message is not None
    assert message.error() is None
    assert asked
    assert set(asked) == {"eu-central-1"}


def test_a_token_of_nobody_is_refused(secure_kafka: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_callback(_region: str | None) -> msk_iam.TokenCallback:
        return lambda _config: ("not.a.token", time.time() + 900)

    monkeypatch.setattr("flagger.kafka.token_callback", fake_callback)
    settings = secure_kafka.settings(
        kafka_bootstrap_servers=secure_kafka.token, kafka_sasl_mechanism="AWS_MSK_IAM"
    )
    with pytest.raises(ConfigurationError, match=r"as an AWS identity.*kafka-cluster:Connect"):
        ensure_topics(settings)


def test_a_certificate_needs_its_key() -> None:
    with pytest.raises(ValueError, match="need each other"):
        Settings(kafka_tls_certificate=Path("only-one.pem"))
