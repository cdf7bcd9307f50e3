"""The shell commands of the pages, and a reader who gives them."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from deploy.local.server import free_ports
from deploy.local.services import first_api_key
from deploy.local.stack import LocalStack
from flagger.settings import ENV_PREFIX, Settings
from loadtest.own_topics import own_topic_names
from loadtest.processes import variables_of
from streamer.topics import ensure_topics

ROOT = Path(__file__).parents[2]
TABLES: dict[str, Any] = tomllib.loads(Path(__file__).with_name("pages.toml").read_text())
PRELOADED = Path(__file__).with_name("preloaded.py")
SHELLS = {"bash", "console", "sh"}
PROGRAMS = {
    "aws", "cd", "curl", "deploy/compose/compose.sh", "docker", "export", "flagger", "helm",
    "kubectl", "locust", "make", "prometheus", "prometheus-alertmanager", "python", "terraform",
}  # fmt: skip
"""An indented block that begins with one is of the shell; others stand in a ```bash block."""
BLOCK = re.compile(
    r"^ *```(?P<language>\w*)\n(?P<fenced>.*?)^ *```$"
    r"|(?<=\n\n)(?P<indented>(?: {4,}\S[^\n]*\n)+)",
    re.MULTILINE | re.DOTALL,
)
COMMAND_S, READY_S, STOP_S = 60.0, 60.0, 20.0


def commands_of(text: str) -> list[str]:
    """Return the shell commands of a page, each in one piece and without the remark behind it."""
    commands = []
    for block in BLOCK.finditer(text):
        lines = (block["fenced"] or block["indented"] or "").splitlines()
        prompts = [line.strip()[2:] for line in lines if line.strip().startswith("$ ")]
        if prompts:  # the other lines are what is answered
            lines = prompts
        elif block["language"] not in SHELLS and not (block["indented"] and begins(lines[0])):
            continue
        pending = ""
        for line in lines:
            pending += line.strip() + "\n"
            if is_whole(pending):
                if command := re.sub(
                    r"(^|\s+)#\s[^'\"\n]*$", "", pending.replace("\\\n", "").strip()
                ):
                    commands.append(command)
                pending = ""
        assert not pending, f"a command that does not end: {pending}"
    return commands


def begins(line: str) -> bool:
    return re.sub(r"^(\s*[A-Z_]+=\S+)*\s*", "", line).split(" ")[0] in PROGRAMS


def is_whole(command: str) -> bool:
    try:
        shlex.split(command, comments=True)
    except ValueError:  # a quotation that goes on
        return False
    return not command.endswith("\\\n")


def entry_of(table: str, command: str) -> dict[str, str] | None:
    """Return the entry of a table of pages.toml that a command has, if it has one."""
    entries: list[dict[str, str]] = TABLES[table]
    return next((entry for entry in entries if re.match(entry["command"], command)), None)


def as_given(command: str, replacements: list[dict[str, str]] = TABLES["replace"]) -> str:
    """Return the command as a reader would give it here."""
    for entry in replacements:
        command = re.sub(entry["find"], entry["by"], command)
    return command


@dataclass
class Reader:
    """Somebody in a folder of their own who gives the commands of pages; all services work."""

    folder: Path
    variables: dict[str, str]
    given: list[str] = field(default_factory=list)

    def start(self, command: str, **options: Any) -> subprocess.Popen[str]:
        bash = shutil.which("bash")
        assert bash is not None
        return subprocess.Popen(
            [bash, "-euo", "pipefail", "-c", command],
            cwd=self.folder, env=self.variables, stdin=subprocess.DEVNULL,
            start_new_session=True, text=True, **options,
        )  # fmt: skip

    def give(self, command: str) -> str:
        """Run a command to its end; return what it printed."""
        self.given.append(command)
        if exported := re.fullmatch(r"export (\w+)=(\S+)", command):
            self.variables[exported[1]] = exported[2]
            return ""
        with self.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
            try:
                out, _ = process.communicate(timeout=COMMAND_S)
            finally:
                end(process)
        good = {0, 1} if entry_of("may_say_no", command) else {0}
        assert process.returncode in good, f"{command}\n{out[-3_000:]}"
        assert "Traceback" not in out, f"{command}\n{out[-3_000:]}"
        return out

    def serve(self, command: str, port_option: str, ready: str, *, port: int = 0) -> Service:
        """Run a command that goes on until it is stopped; return it once it says that it works."""
        self.given.append(command)
        port = port or free_ports(1)[0]
        log = self.folder / f"{'-'.join(command.split()[1:3])}.log"
        with log.open("w") as out:
            process = self.start(
                f"exec {command} {port_option} {port}", stdout=out, stderr=subprocess.STDOUT
            )
        service = Service(command, process, log)
        service.wait_until_ready(f"http://127.0.0.1:{port}/{ready}")
        return service


@dataclass
class Service:
    """A command that goes on until it is stopped."""

    command: str
    process: subprocess.Popen[str]
    log: Path

    def wait_until_ready(self, url: str) -> None:
        deadline_s = time.monotonic() + READY_S
        answer = ""
        while True:
            try:
                with urllib.request.urlopen(url, timeout=2) as response:
                    if response.status == 200:
                        return
            except urllib.error.HTTPError as error:
                answer = error.read().decode(errors="replace")
            except OSError as error:
                answer = str(error)
            told = f"{self.command}: {answer}\n{self.log.read_text()[-3_000:]}"
            assert self.process.poll() is None, told
            assert time.monotonic() < deadline_s, told
            time.sleep(0.05)

    def stop(self) -> None:
        """Stop it as an orchestrator does; a stop on request is no failure."""
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_S)
        finally:
            end(self.process)
        told = f"{self.command}: {status}\n{self.log.read_text()[-3_000:]}"
        assert status == 0, told
        assert "Traceback" not in told


def end(process: subprocess.Popen[str]) -> None:
    """Make sure that nothing of a command is left."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.fixture(scope="session")
def flagger_program(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a `flagger` that is the real one, but for its modules' loading time.

    They are loaded while the servers start; who calls it before waits.
    """
    folder = tmp_path_factory.mktemp("bin")
    socket = folder / "socket"
    log = folder / "preloaded.log"
    program = folder / "flagger"
    run = shlex.join([sys.executable, "-S", str(PRELOADED), "run", str(socket)])
    program.write_text(f'#!/bin/sh\nexec {run} "$@"\n')
    program.chmod(0o755)
    with log.open("w") as out:
        server = subprocess.Popen(
            [sys.executable, str(PRELOADED), "serve", str(socket)],
            cwd=ROOT, stdout=out, stderr=subprocess.STDOUT, start_new_session=True, text=True,
        )  # fmt: skip
    try:
        yield folder
    finally:
        os.killpg(server.pid, signal.SIGKILL)  # with all that it has forked
        server.wait()


@pytest.fixture(scope="module")
def servers(
    flagger_program: Path, stack: LocalStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """Kafka is everybody's, with topics of our own; models and state are the reader's alone."""
    folder = tmp_path_factory.mktemp("reader")
    shutil.copytree(ROOT / "model_repository", folder / "model_repository")
    own = LocalStack(
        tmp_path_factory.mktemp("servers"),
        model_repository=folder / "model_repository",
        services=frozenset({"triton", "valkey"}),
    )
    with own:
        shared = {"kafka_bootstrap_servers": stack.addresses.kafka_bootstrap_servers}
        names = own_topic_names("pages") | {"consumer_group": "pages", "partitions": 2}
        settings = own.settings().model_copy(update=shared | names)
        ensure_topics(settings)
        yield settings


@pytest.fixture(scope="module")
def reader(servers: Settings, flagger_program: Path) -> Iterator[Reader]:
    """Somebody whose files are those that pages show, and for whom streamer and gateway work."""
    folder = servers.model_repository.parent
    shared = ("kafka_bootstrap_servers", "triton_url", "valkey_url", "consumer_group", "partitions")
    names = [*shared, *own_topic_names("")]
    port = free_ports(1)[0]
    variables = {k: v for k, v in os.environ.items() if not k.startswith(ENV_PREFIX)}
    variables |= variables_of({name: getattr(servers, name) for name in names})
    path = os.pathsep.join(
        [str(flagger_program), str(Path(sys.executable).parent), variables["PATH"]]
    )
    variables |= {
        "PATH": path,
        "CHECKOUT": str(ROOT),
        "GATEWAY": f"localhost:{port}",
        "VALKEY": re.sub(r"/\d+$", "", servers.valkey_url or ""),
    }
    key = first_api_key(Settings(gateway_keys_file=folder / "gateway-keys.json"))
    variables["KEY"] = key or ""
    here = Reader(folder, variables)
    write_files(here)
    doors = [
        here.serve("flagger stream", "--metrics-port", "readyz"),
        here.serve("flagger gateway", "--port", "readyz", port=port),
    ]
    yield here
    for door in doors:
        door.process.send_signal(signal.SIGTERM)
    for door in doors:
        door.stop()


def write_files(reader: Reader) -> None:
    """Write what a reader has: the files that pages show, and payments in another layout."""
    readme, rules = (ROOT / "README.md").read_text(), (ROOT / "docs/rules.md").read_text()
    shown = re.search(r"(?s)\n\n( {4}\[columns\].*?)\n\n +flagger", readme)
    assert shown is not None
    (reader.folder / "map.toml").write_text(re.sub(r"(?m)^ {4}", "", shown[1]))
    rulebook = re.search(r"(?s)```toml\n(.*?)```", rules)
    assert rulebook is not None
    (reader.folder / "rules.toml").write_text(rulebook[1])
    (reader.folder / "stolen.txt").write_text("tok_c_99\n")
    (reader.folder / "case-store-url").write_text("sqlite:///other-cases.db\n")
    size = "--customers 200 --terminals 200 --days 101 --start 2018-04-01"
    reader.give(f"flagger simulate --out handbook-transactions.parquet {size}")
    reader.give(f"flagger simulate --out payments.csv {size}")
    reader.give(
        "sed -i '1s/transaction_id/TX_ID/; 1s/event_time/TX_DATETIME/; s/Z,/,/' payments.csv"
    )
