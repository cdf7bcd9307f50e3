"""`flagger up --services`: one command, and a payment becomes a decision and a case."""

from __future__ import annotations

import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import psutil
import pytest

from deploy.local.record import read_record
from deploy.local.services import SERVICES
from deploy.local.stack import LocalStack
from loadtest.own_topics import own_topic_names
from loadtest.processes import environment_of, variables_of

pytestmark = [pytest.mark.stack, pytest.mark.timeout(240)]
NAME = "local-services"
RULEBOOK = """
version = "1"
[[list]]
name = "watched"
action = "watch"
field = "terminal_id"
values = ["m-watched"]
reason = "is watched"
"""
READY_S = 150.0
CASE_S = 20.0


class Up:
    """`flagger up --services` in a folder of its own."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.log = folder / "up.log"
        with self.log.open("w") as out:
            self.process = self._flagger("up", "--services", stdout=out)
        deadline_s = time.monotonic() + READY_S
        while "stop with Ctrl-C" not in self.output:
            assert self.process.poll() is None, self.output
            assert time.monotonic() < deadline_s, self.output
            time.sleep(0.1)

    def _flagger(self, *arguments: str, stdout: object) -> subprocess.Popen[str]:
        process: subprocess.Popen[str] = subprocess.Popen(
            [sys.executable, "-m", "flagger", *arguments],
            cwd=self.folder,
            env=self.environment,
            stdout=stdout,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            text=True,
        )
        return process

    @property
    def output(self) -> str:
        return self.log.read_text()

    def url(self, name: str) -> str:
        found = re.search(rf"│ {name} +│ (http://\S+)", self.output)
        assert found, self.output
        return found[1]

    def run(self, *arguments: str) -> str:
        """Run a command as somebody in the same folder would; return what it prints."""
        with self._flagger(*arguments, stdout=subprocess.PIPE) as process:
            output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
        return output

    def cases(self) -> list[str]:
        with closing(sqlite3.connect(self.folder / "cases.db")) as store:
            return [row[0] for row in store.execute("SELECT transaction_id FROM cases")]


@pytest.fixture
def up(stack: LocalStack, own_valkey: LocalStack, tmp_path: Path) -> Iterator[Up]:
    (tmp_path / "rulebook.toml").write_text(RULEBOOK)
    own = {"consumer_group": NAME, "partitions": 2, "valkey_url": own_valkey.addresses.valkey_url}
    settings = stack.settings().model_copy(update=own_topic_names(NAME) | own)
    extra = variables_of({"rulebook": "rulebook.toml"}) | {"COLUMNS": "120"}
    running = Up(tmp_path, environment_of(settings, extra))
    yield running
    if running.process.poll() is None:
        running.process.kill()
        running.process.wait()


def test_one_command_runs_everything_and_a_payment_becomes_a_case(up: Up) -> None:
    pids = [
        entry["pid"] for entry in (read_record(up.folder / ".flagger") or {})["processes"].values()
    ]
    assert len(pids) == len(SERVICES)  # the servers run elsewhere
    family = [psutil.Process(pid) for pid in pids]
    found = re.search(r"gateway, shown this once: (\S+)", up.output)
    assert found, up.output
    login = re.search(r"desk, shown this once: (\w+), password (\S+)", up.output)
    assert login, up.output
    payment = {
        "transaction_id": "t-1",
        "event_time": time.time_ns() // 1_000_000,
        "customer_id": "c-1",
        "terminal_id": "m-watched",
        "amount": 12.5,
    }
    answer = httpx.post(
        f"{up.url('gateway')}/v1/score",
        json=payment,
        headers={"Authorization": f"Bearer {found[1]}"},
        timeout=10,
    )
    assert (answer.status_code, answer.json()["decision"]) == (200, "review"), answer.text
    deadline_s = time.monotonic() + CASE_S
    while up.cases() != ["t-1"]:
        assert time.monotonic() < deadline_s, up.cases()
        time.sleep(0.1)
    form = {"name": login[1], "password": login[2]}
    with httpx.Client(base_url=up.url("desk"), timeout=10) as browser:
        assert "Review desk" in browser.get("/", follow_redirects=True).text
        assert browser.post("/login", data=form).status_code == 303
        assert browser.cookies
    assert "streamer process" in up.run("status")

    up.process.send_signal(signal.SIGTERM)
    assert up.process.wait(60) == 0, up.output
    assert not any(process.is_running() for process in family)
    assert read_record(up.folder / ".flagger") is None
