"""State goes into a backup while everything runs, and comes out of it bit-equal."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pytest
import valkey
import xgboost as xgb
from click.testing import CliRunner
from pydantic import SecretStr

from deploy.backup import back_up
from deploy.backup_files import Manifest
from deploy.local.stack import LocalStack
from deploy.restore import restore
from flagger.cli import cli
from flagger.errors import ConfigurationError, DataError
from flagger.settings import Settings
from flagger.state.records import CUSTOMER, STATE_VERSION, TERMINAL
from flagger.state.store import StateStore
from flagger.wire.messages import Decision
from loadtest.crash_world import CrashWorld, wait_until
from loadtest.offline import compare, replay_log
from loadtest.topic_reader import Records, read_topic
from train.simulate import SimulationConfig, simulate

SIZE = SimulationConfig(customers=150, terminals=80, days=40, start=date(2026, 1, 1), seed=5)
numbers = itertools.count(1)


@pytest.fixture
def empty(own_valkey: LocalStack, tmp_path: Path) -> Settings:
    """Settings with an empty Valkey database and no cases."""
    cases = SecretStr(f"sqlite:///{tmp_path / 'cases.sqlite'}")
    settings = Settings(valkey_url=own_valkey.addresses.valkey_url, case_store_url=cases)
    forget(settings)
    return settings


def forget(settings: Settings) -> None:
    client: Any = valkey.Valkey.from_url(settings.valkey_url or "")
    client.flushdb()
    client.close()


def fill(settings: Settings, customers: int = 5_000, terminals: int = 300) -> None:
    """Store records of random content with valid versions, marks and a stored decision."""
    generator = np.random.default_rng(3)
    store = StateStore(settings.valkey_url or "")
    for kind, dtype, n in (("customer", CUSTOMER, customers), ("terminal", TERMINAL, terminals)):
        records = np.frombuffer(generator.bytes(n * dtype.itemsize), dtype=dtype).copy()
        records["key"] = np.arange(n)
        records["version"] = STATE_VERSION
        store.write(kind, records)  # type: ignore[arg-type]
    store.write_marks(f"{settings.consumer_group}:side-logs", {"labels": 7})
    store.write_marks(settings.consumer_group, {"0": 40, "1": 41})
    store.close()


def contents(settings: Settings) -> dict[bytes, bytes]:
    """Return every record of the database as it stands there."""
    client: Any = valkey.Valkey.from_url(settings.valkey_url or "")
    found = {
        key: client.get(key)
        for prefix in (b"ff:c:*", b"ff:t:*", b"ff:d:*")
        for key in client.scan_iter(match=prefix, count=1_000)
    }
    client.close()
    return found


def has_marks(settings: Settings) -> bool:
    store = StateStore(settings.valkey_url or "")
    marks = store.read_marks(settings.consumer_group)
    store.close()
    return sum(marks.values()) > 0


def test_what_is_restored_is_what_was_there_byte_for_byte(empty: Settings, tmp_path: Path) -> None:
    fill(empty)
    client: Any = valkey.Valkey.from_url(empty.valkey_url or "")
    client.set(b"ff:d:12345678", b"w-decision", ex=3_600)
    client.set(b"ff:d:87654321", b"soon-gone", px=300)
    before = contents(empty)
    made = back_up(empty, tmp_path / "backup")
    assert made.counts["customers.bin"] == 5_000
    assert made.marks == {"0": 40, "1": 41}
    forget(empty)
    wait_until(lambda: not client.exists(b"ff:d:87654321"), 5, "the expiry")
    restored = restore(empty, tmp_path / "backup")
    assert restored == made
    after = contents(empty)
    assert after.pop(b"ff:d:12345678") == b"w-decision"
    before = {k: v for k, v in before.items() if not k.startswith(b"ff:d:")}
    after.pop(b"ff:d:87654321", None)  # it expires when it would have
    assert after == before
    assert 3_000 < client.ttl(b"ff:d:12345678") <= 3_600
    client.close()
    store = StateStore(empty.valkey_url or "")
    assert store.read_marks(empty.consumer_group) == {"0": 40, "1": 41}
    assert store.read_marks(f"{empty.consumer_group}:side-logs") == {"labels": 7}
    store.close()


def test_a_new_log_begins_with_no_offsets(empty: Settings, tmp_path: Path) -> None:
    fill(empty, 10, 10)
    back_up(empty, tmp_path / "backup")
    forget(empty)
    restore(empty, tmp_path / "backup", new_log=True)
    store = StateStore(empty.valkey_url or "")
    customers, terminals = store.read_all("customer"), store.read_all("terminal")
    assert store.read_marks(empty.consumer_group) == {}
    store.close()
    assert set(customers["partition"].tolist()) == {-1}
    assert not customers["applied_offset"].any()
    assert not terminals["activity_offset"].any()
    assert not terminals["label_offset"].any()


def test_without_a_desk_there_are_no_cases(empty: Settings, tmp_path: Path) -> None:
    # With one: tests/review/test_case_backup.py, on both databases.
    fill(empty, 10, 10)
    made = back_up(empty, tmp_path / "backup")
    assert made.case_layout == ""
    forget(empty)
    restore(empty, tmp_path / "backup")
    assert not (tmp_path / "cases.sqlite").exists()


def damage_record(folder: Path) -> None:
    with (folder / "customers.bin").open("r+b") as file:
        file.seek(700)
        file.write(b"\xff")


def cut_short(folder: Path) -> None:
    raw = (folder / "terminals.bin").read_bytes()
    (folder / "terminals.bin").write_bytes(raw[:-8])


def other_version(folder: Path) -> None:
    manifest = msgspec.json.decode((folder / "manifest.json").read_bytes())
    manifest["state_version"] += 1
    (folder / "manifest.json").write_bytes(msgspec.json.encode(manifest))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (damage_record, r"customers\.bin: is not what was written"),
        (cut_short, r"terminals\.bin: is not what was written"),
        (lambda f: (f / "decisions.msgpack").unlink(), "decisions"),
        (other_version, "state version"),
        (lambda f: (f / "manifest.json").write_text("{"), "is damaged"),
        (lambda f: (f / "manifest.json").unlink(), "cannot be read"),
    ],
)
def test_a_damaged_backup_is_refused_whole(
    empty: Settings, tmp_path: Path, damage: Any, words: str
) -> None:
    fill(empty, 10, 10)
    back_up(empty, tmp_path / "backup")
    forget(empty)
    damage(tmp_path / "backup")
    with pytest.raises(DataError, match=words):
        restore(empty, tmp_path / "backup")
    assert contents(empty) == {}


def test_two_states_do_not_mix(empty: Settings, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no state of the consumer group"):
        back_up(empty, tmp_path / "backup")
    fill(empty, 10, 10)
    back_up(empty, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="never overwritten"):
        back_up(empty, tmp_path / "backup")
    with pytest.raises(ConfigurationError, match="is not empty"):
        restore(empty, tmp_path / "backup")
    forget(empty)
    other = empty.model_copy(update={"consumer_group": "others"})
    with pytest.raises(ConfigurationError, match="FLAGGER_CONSUMER_GROUP"):
        restore(other, tmp_path / "backup")


def test_the_commands(empty: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(empty, 10, 10)
    monkeypatch.setenv("FLAGGER_VALKEY_URL", empty.valkey_url or "")
    monkeypatch.setenv("FLAGGER_KAFKA_BOOTSTRAP_SERVERS", "nobody:9092")
    monkeypatch.setenv("FLAGGER_TRITON_URL", "nobody:8001")
    monkeypatch.setenv("FLAGGER_CASE_STORE_URL", empty.case_store_url.get_secret_value())
    folder = str(tmp_path / "backup")
    done = CliRunner().invoke(cli, ["backup", folder])
    assert done.exit_code == 0, done.output
    assert "10 customers, 10 terminals" in done.output
    forget(empty)
    done = CliRunner().invoke(cli, ["restore", folder])
    assert done.exit_code == 0, done.output
    assert "0: 40, 1: 41" in done.output
    assert (tmp_path / "backup").stat().st_mode & 0o077 == 0


@pytest.fixture
def world(stack: LocalStack, own_valkey: LocalStack, tmp_path: Path) -> Iterator[CrashWorld]:
    url = {"valkey_url": own_valkey.addresses.valkey_url}
    settings = stack.settings().model_copy(update=url)
    with CrashWorld(settings, f"backup-{next(numbers)}", 0, tmp_path) as made:
        yield made


@pytest.mark.stack
@pytest.mark.timeout(150)
def test_decisions_go_on_from_a_backup_that_was_made_under_load(
    world: CrashWorld, tmp_path: Path
) -> None:
    history = pa.Table.from_batches(simulate(SIZE))
    half = history.num_rows // 2
    world.feed(history.slice(0, half).to_batches())
    streamer = world.start()
    wait_until(lambda: has_marks(world.settings), 30, "the first marks")
    world.start_feeding(history.slice(half).to_batches(), per_s=2_000)
    made = back_up(world.settings, tmp_path / "backup")
    decided = len(world.decisions())
    wait_until(lambda: len(world.decisions()) > decided, 30, "decisions behind the backup")
    world.finish_feeding()
    streamer.kill()
    streamer.wait()
    forget(world.settings)
    assert restore(world.settings, tmp_path / "backup") == made
    assert sum(made.marks.values()) > 0  # not simply everything again
    world.drain(world.start()).stop()
    verdict = world.check()
    assert verdict.problems == []
    assert verdict.decisions.decided == history.num_rows


def shifted(records: Records, by: int) -> Records:
    return Records(
        records.values,
        records.partition,
        records.offset + by,
        records.timestamp_ms,
        records.read_ms,
    )


@pytest.mark.stack
@pytest.mark.timeout(150)
def test_a_fresh_stack_goes_on_bit_equal(
    stack: LocalStack, own_valkey: LocalStack, tmp_path: Path
) -> None:
    # Kafka is gone as well: other topics from offset 0, another group's name, an empty Valkey.
    history = pa.Table.from_batches(simulate(SIZE))
    half = history.num_rows // 2
    url = {"valkey_url": own_valkey.addresses.valkey_url}
    settings = stack.settings().model_copy(update=url)
    with CrashWorld(settings, f"lost-{next(numbers)}", 0, tmp_path) as lost:
        lost.feed(history.slice(0, half).to_batches())
        lost.drain(lost.start()).stop()
        back_up(lost.settings, tmp_path / "backup")
        old_log = read_topic(lost.settings, lost.settings.transactions_topic)
        old_labels = read_topic(lost.settings, lost.settings.labels_topic)
        old = lost.decisions()
    rename(tmp_path / "backup", fresh_group := f"fresh-{next(numbers)}")
    with CrashWorld(settings, fresh_group, 0, tmp_path) as fresh:
        restore(fresh.settings, tmp_path / "backup", new_log=True)
        fresh.feed(history.slice(half).to_batches())
        fresh.drain(fresh.start()).stop()
        new_log = read_topic(fresh.settings, fresh.settings.transactions_topic)
        new_labels = read_topic(fresh.settings, fresh.settings.labels_topic)
        new = fresh.decisions()
        model = fresh.model
    assert len(new) == history.num_rows - half
    log = Records.concat([old_log, shifted(new_log, 1_000_000)])
    labels = Records.concat([old_labels, shifted(new_labels, 1_000_000)])
    replay = replay_log(log, labels, model.contract)
    booster = xgb.Booster(
        model_file=settings.model_repository / "fraud_fil" / model.version / "xgboost.json"
    )
    scores = np.asarray(booster.inplace_predict(replay.rows, missing=np.nan), np.float32)
    decoder = msgspec.json.Decoder(Decision)
    verdict = compare(replay, scores, [decoder.decode(value) for value in old + new], 0)
    assert verdict.failures == []
    assert verdict.decided == history.num_rows


def rename(backup: Path, group: str) -> None:
    """Make a backup look like another group's; the test's two worlds have names of their own."""
    manifest = msgspec.json.decode((backup / "manifest.json").read_bytes(), type=Manifest)
    changed = msgspec.structs.replace(manifest, consumer_group=group)
    (backup / "manifest.json").write_bytes(msgspec.json.encode(changed))
