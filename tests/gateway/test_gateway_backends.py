"""The seams: stored decisions in Valkey, writes to Kafka, the pointer to the live model."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from confluent_kafka import Producer

from flagger.cli import cli
from flagger.errors import ConfigurationError, ModelUnavailableError, StateStoreError
from flagger.features import CATEGORY_FIELDS, FeatureContract, TransactionBatch
from flagger.models import file_sha256, set_live_version
from flagger.settings import Settings
from flagger.wire.messages import Transaction
from gateway.answers import Claim, body_hash
from gateway.backends import connect
from gateway.live import LiveModel, Serving
from gateway.producer import TransactionLog, TransactionLogError
from gateway.request import batch_of
from gateway.state import AsyncStateStore

pytestmark = pytest.mark.anyio
Body = Callable[..., dict[str, Any]]


@pytest.fixture
def batch(body: Body) -> TransactionBatch:
    return batch_of(msgspec.convert(body(), Transaction))


@pytest.fixture
async def store(empty_valkey: str) -> AsyncIterator[AsyncStateStore]:
    store = AsyncStateStore(empty_valkey)
    yield store
    await store.close()


def claim_of(decision: str) -> Claim:
    return Claim(b"h" * 16, decision, "model", 0.5, "m", "1", "p", ["why"], "0" * 16, 1.5)


async def test_first_claim_wins_and_is_marked(
    store: AsyncStateStore, batch: TransactionBatch
) -> None:
    assert await store.claim(batch, claim_of("review"), 1_000) is None
    found = await store.claim(batch, claim_of("decline"), 1_000)
    assert found is not None
    assert (found.claim, found.written) == (claim_of("review"), False)
    await store.mark_written(batch, claim_of("review"), None, (0, 7), 1_000)
    seen = await store.admit(batch, 1_000)
    assert seen.stored is not None
    assert (seen.stored.claim, seen.stored.written) == (claim_of("review"), True)
    key = b"ff:d:" + batch.transaction_key.astype(">u8").tobytes()
    ttl_s, value = await store._link.call("answer", [("TTL", key), ("GET", key)], 1_000)
    assert 86_000 < ttl_s <= 86_400
    assert b"c-planted" not in value


async def test_unreadable_records_are_an_error_that_says_what_to_do(
    store: AsyncStateStore, batch: TransactionBatch
) -> None:
    key = batch.transaction_key.astype(">u8").tobytes()
    await store._link.call("take it", [("SET", b"ff:d:" + key, b"cgarbage")], 1_000)
    with pytest.raises(StateStoreError, match="another release wrote it"):
        await store.admit(batch, 1_000)


async def test_call_cut_off_by_its_limit_leaves_no_answer_for_the_next(
    store: AsyncStateStore, batch: TransactionBatch
) -> None:
    await store.claim(batch, claim_of("review"), 1_000)
    await store._link.call("pause", [("CLIENT", "PAUSE", "150", "ALL")], 1_000)
    for _ in range(3):
        with pytest.raises(StateStoreError, match="within 20 ms"):
            await store.ping(20)
    found = await store.read_claim(batch.transaction_key, 1_000)
    assert found is not None
    assert found.claim.decision == "review"


@pytest.mark.parametrize("url", ["http://somewhere", "nonsense"])
async def test_bad_valkey_address(url: str) -> None:
    with pytest.raises(ConfigurationError, match="FLAGGER_VALKEY_URL"):
        AsyncStateStore(url)


async def test_equal_transactions_have_equal_hashes(body: Body) -> None:
    def hashed(**changes: Any) -> bytes:
        return body_hash(msgspec.convert(body(**changes), Transaction))

    assert hashed(event_time="2023-11-15T13:00:00+01:00", amount=12.50) == hashed()
    others = [hashed(**{name: "other"}) for name in ("customer_id", "terminal_id", "currency")]
    assert len({hashed(), hashed(amount=12.51), hashed(channel=None), *others}) == 6


@pytest.fixture(scope="module")
def broker() -> Iterator[str]:
    """Return the address of librdkafka's in-process broker; the real one is in the stack tests."""
    owner = Producer({"bootstrap.servers": "ignored", "test.mock.num.brokers": 1})
    (node,) = owner.list_topics(timeout=10).brokers.values()
    yield f"{node.host}:{node.port}"
    owner.flush(0)


async def test_write_returns_after_the_acknowledgement(broker: str) -> None:
    log = TransactionLog(Settings(kafka_bootstrap_servers=broker))
    await log.check(5)
    places = await asyncio.gather(*(log.write(b"c", b"%d" % i, 5_000) for i in range(50)))
    assert sorted(offset for _, offset in places) == list(range(50))
    assert len({partition for partition, _ in places}) == 1
    await log.write_label(b"{}", 5_000)
    assert log.fatal is None
    await log.close()


async def test_broker_that_is_away_costs_no_more_than_the_limit() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        log = TransactionLog(Settings(kafka_bootstrap_servers=address))
        start = time.perf_counter()
        with pytest.raises(TransactionLogError, match="within 50 ms"):
            await log.write(b"c", b"v", 50)
        assert time.perf_counter() - start < 1
        with pytest.raises(TransactionLogError, match="does not answer"):
            await log.check(0.1)
        log._producer.purge()
        await log.close()


@pytest.mark.parametrize("ahead_ms", [3.6e6, -3.6e6], ids=["set back", "set forward"])
async def test_a_clock_that_is_set_moves_no_rate_limit(
    store: AsyncStateStore, ahead_ms: float
) -> None:
    """What was kept under another clock locks nobody out for an hour, and frees a burst at most."""

    async def taken() -> list[int]:
        return [await store.wait_ms("k", 0.05, 1.0, 1, 1_000) for _ in range(4)]

    first = await taken()
    assert first[:2] == [0, 0]
    (kept,) = await store._call("read", [("GET", "ff:q:k")], 1_000)
    moved = " ".join(f"{float(number) + ahead_ms:.3f}" for number in kept.split())
    await store._call("write", [("SET", "ff:q:k", moved)], 1_000)
    again = await taken()
    if ahead_ms < 0:
        assert again[:2] == [0, 0]
    for wait_ms in (*first[2:], *again[2 if ahead_ms < 0 else 0 :]):
        assert 15_000 < wait_ms <= 20_000


def publish(repository: Path, version: str, threshold: float = 0.5) -> None:
    folder = repository / "fraud_fil" / version
    folder.mkdir(parents=True)
    contract = FeatureContract({name: ("a",) for name in CATEGORY_FIELDS})
    (folder / "contract.json").write_text(contract.to_json())
    policy = {"policy_version": version, "review_threshold": threshold, "decline_threshold": 0.9}
    (folder / "policy.json").write_text(json.dumps(policy))
    names = [f"fraud_fil/{version}/{name}" for name in ("contract.json", "policy.json")]
    manifest = {"artefacts": {name: file_sha256(repository / name) for name in names}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    set_live_version(repository, version)


async def test_pointer_is_followed_but_not_to_a_version_that_is_refused(tmp_path: Path) -> None:
    refused: set[str] = {"2"}

    async def accept(serving: Serving) -> None:
        if serving.model.version in refused:
            raise ModelUnavailableError("not loaded")

    publish(tmp_path, "1")
    live = LiveModel(Serving.load(tmp_path, "fraud_onnx", "1"), tmp_path, accept)
    assert not await live.refresh()
    publish(tmp_path, "2", threshold=0.6)
    assert not await live.refresh()
    assert live.current.model.version == "1"
    refused.clear()
    assert await live.refresh()
    assert live.current.model.version == "2"
    assert live.current.policy.review_threshold == 0.6
    (tmp_path / "live.json").write_text("{")
    assert not await live.refresh()
    set_live_version_back(tmp_path)
    assert await live.refresh()
    assert live.current.model.version == "1"


def set_live_version_back(repository: Path) -> None:
    (repository / "live.json").unlink()
    set_live_version(repository, "1")


async def test_without_a_live_model_the_gateway_does_not_start(tmp_path: Path) -> None:
    settings = Settings(model_repository=tmp_path, triton_url="a:1", valkey_url="valkey://a")
    with pytest.raises(ConfigurationError, match="no model version is live"):
        await connect(settings)
    with pytest.raises(ConfigurationError, match="FLAGGER_VALKEY_URL"):
        await connect(Settings(triton_url="a:1"))


def test_command_line_names_the_missing_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(cli, ["gateway"])
    assert isinstance(result.exception, ConfigurationError)
    assert "FLAGGER_KAFKA_BOOTSTRAP_SERVERS" in str(result.exception)
