"""The stack's processes when their owner is killed, interrupted or asked to end."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import valkey
from click.testing import CliRunner
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local import launch
from deploy.local.cli import down, status
from deploy.local.record import is_alive, read_record
from deploy.local.stack import LocalStack
from flagger.errors import StackError
from tests.deploy.conftest import WriteEntry

pytestmark = pytest.mark.stack
GONE_S = 15.0
READY_S = 60.0
OWNER = """
import sys, time
from pathlib import Path
from deploy.local.stack import LocalStack
with LocalStack(Path(sys.argv[1]), model_repository=Path(sys.argv[2])):
    print("ready", flush=True)
    time.sleep(600)
"""


def own_stack(home: Path, repository: Path) -> subprocess.Popen[str]:
    """Start a process that owns a stack; return when the stack answers."""
    command = [sys.executable, "-c", OWNER, str(home), str(repository)]
    owner = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    assert owner.stdout.readline() == "ready\n"
    owner.stdout.close()
    return owner


def flagger_up(folder: Path) -> subprocess.Popen[str]:
    """Start `flagger up` with only Valkey of its own; return when it is recorded."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("FLAGGER_")}
    elsewhere = {
        "FLAGGER_KAFKA_BOOTSTRAP_SERVERS": "kafka.example:9092",
        "FLAGGER_TRITON_URL": "triton.example:8001",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "flagger", "up"],
        cwd=folder,
        env=clean | elsewhere | {"COLUMNS": "120"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline_s = time.monotonic() + READY_S
    while read_record(folder / ".flagger") is None:
        assert process.poll() is None
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    return process


@pytest.fixture
def up(tmp_path: Path) -> Iterator[Callable[[], subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []

    def start() -> subprocess.Popen[str]:
        started.append(flagger_up(tmp_path))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for_end(processes: list[psutil.Process]) -> None:
    deadline_s = time.monotonic() + GONE_S
    while left := [process for process in processes if runs(process)]:
        assert time.monotonic() < deadline_s, left
        time.sleep(0.05)


def test_nothing_survives_a_killed_owner_and_the_next_start_goes_on(
    tmp_path: Path, write_fil: WriteEntry, booster: Any
) -> None:
    home, repository = tmp_path / "home", tmp_path / "models"
    write_fil(repository, "tiny", booster, {"output__0": 1})
    owner = own_stack(home, repository)
    record = read_record(home)
    assert record is not None
    admin = AdminClient({"bootstrap.servers": record["addresses"]["kafka_bootstrap_servers"]})
    admin.create_topics([NewTopic("kept")])["kept"].result(30)
    del admin
    children = family(owner.pid)
    assert {child.pid for child in children} > {p["pid"] for p in record["processes"].values()}

    owner.kill()
    owner.wait()
    wait_for_end(children)  # also the models' own processes, which Triton starts

    with LocalStack(home, services=frozenset({"kafka"})) as stack:
        assert set(stack.pids) == {"kafka"}
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
        assert "kept" in admin.list_topics(timeout=10).topics
    assert read_record(home) is None


def test_fresh_forgets_the_topics_of_earlier_runs(tmp_path: Path) -> None:
    kafka = frozenset({"kafka"})
    with LocalStack(tmp_path, services=kafka) as stack:
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
        admin.create_topics([NewTopic("old")])["old"].result(30)
        del admin
    with LocalStack(tmp_path, services=kafka, fresh=True) as stack:
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
        assert "old" not in admin.list_topics(timeout=10).topics


def test_a_folder_has_one_stack_at_a_time(tmp_path: Path) -> None:
    services = frozenset({"valkey"})
    with LocalStack(tmp_path, services=services) as first:
        with pytest.raises(StackError, match=f"under process {os.getpid()}.*flagger down"):
            LocalStack(tmp_path, services=services).start()
        with pytest.raises(StackError, match="flagger down"):
            first.start()
        first.require_running()
        assert read_record(tmp_path) is not None
    with LocalStack(tmp_path, services=services) as second:
        second.require_running()


def test_servers_that_a_dead_owner_left_are_ended_by_the_next_start(tmp_path: Path) -> None:
    """Where the kernel does not end them with their owner: here one that nobody owns."""
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    created = psutil.Process(left.pid).create_time()
    record = {
        "owner": {"pid": ended.pid, "create_time": created},
        "processes": {
            "kafka": {"pid": left.pid, "create_time": created},
            "triton": {"pid": other.pid, "create_time": created - 3600},  # an id with a new owner
        },
        "addresses": {},
    }
    (tmp_path / "stack.json").write_text(json.dumps(record))
    try:
        with LocalStack(tmp_path, services=frozenset({"valkey"})):
            assert not is_alive({"pid": left.pid, "create_time": created})
            assert other.poll() is None
    finally:
        for process in (left, other):
            process.kill()
            process.wait()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_ends_well_when_interrupted(
    tmp_path: Path, up: Callable[[], subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = up()
    (server,) = family(process.pid)
    assert os.getsid(server.pid) != os.getsid(process.pid)  # Ctrl-C reaches the owner only
    assert process.stdout is not None
    shown = ""
    while "stop with Ctrl-C" not in shown:  # the record is there a moment before the table is
        shown += process.stdout.readline()
    process.send_signal(number)
    rest, _ = process.communicate(timeout=30)
    output = shown + rest
    assert process.returncode == 0, output
    assert "kafka.example:9092" in output
    assert "valkey process" in output
    assert not runs(server)
    assert read_record(tmp_path / ".flagger") is None


def test_down_stops_what_up_started_and_status_tells(
    tmp_path: Path, up: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = CliRunner().invoke
    process = up()
    (server,) = family(process.pid)
    running = ask(status)
    assert running.exit_code == 0
    assert re.search(rf"valkey process\W+{server.pid}\b", running.output)
    assert ask(down).output == "stopped: flagger up\n"
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not runs(server)
    ended = ask(status)
    assert "no embedded stack" in ended.output
    assert ended.exit_code == 1


def test_status_tells_of_a_crash_and_down_clears_up(
    tmp_path: Path, up: Callable[[], subprocess.Popen[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ask = CliRunner().invoke
    process = up()
    (server,) = family(process.pid)
    process.kill()
    process.wait()
    wait_for_end([server])
    crashed = ask(status)
    assert "did not end well" in crashed.output
    assert crashed.exit_code == 1
    assert "nothing was running" in ask(down).output
    assert read_record(tmp_path / ".flagger") is None


def watch(stack: LocalStack) -> None:
    """Look after the stack for a while, as `flagger up` does."""
    deadline_s = time.monotonic() + GONE_S
    while time.monotonic() < deadline_s:
        stack.require_running()
        time.sleep(0.05)


def test_a_service_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    services = frozenset({"valkey"})
    logs = tmp_path / "logs"
    logs.mkdir()
    (logs / "valkey.log").write_text("a line of an earlier run\n")
    with LocalStack(tmp_path, services=services) as stack:
        store: Any = valkey.Valkey.from_url(stack.addresses.valkey_url)
        assert store.ping()
        store.close()
        psutil.Process(stack.pids["valkey"]).kill()
        with pytest.raises(StackError) as raised:
            watch(stack)
        assert "Valkey ended with status -9" in str(raised.value)
        assert "Ready to accept connections" in str(raised.value)
        assert "earlier run" not in str(raised.value)


def test_the_launcher_does_not_start_a_server_for_a_parent_that_has_ended() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    command = [sys.executable, launch.__file__, str(ended.pid), "echo", "started"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (1, "")
    command[2] = str(os.getpid())
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout) == (0, "started\n")
