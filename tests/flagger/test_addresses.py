"""Addresses come from the settings first, then from the stack that runs in this folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from flagger.addresses import ADDRESS_FIELDS, STACK_FILE, fill_addresses, resolve_settings
from flagger.errors import ConfigurationError
from flagger.settings import Settings

RECORDED = {
    "kafka_bootstrap_servers": "127.0.0.1:1",
    "triton_url": "127.0.0.1:2",
    "triton_http_url": "127.0.0.1:3",
    "valkey_url": "valkey://127.0.0.1:4/0",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, without settings in the environment."""
    monkeypatch.chdir(tmp_path)
    for name in ADDRESS_FIELDS:
        monkeypatch.delenv(f"FLAGGER_{name.upper()}", raising=False)
    return tmp_path


def record(folder: Path, *, pid: Any = None, **changes: Any) -> None:
    """Write what `flagger up` writes; this process owns the stack unless `pid` says otherwise."""
    path = folder / STACK_FILE
    path.parent.mkdir(exist_ok=True)
    owner = {"pid": os.getpid() if pid is None else pid, "create_time": 1.0}
    content = {"owner": owner, "processes": {}, "addresses": RECORDED | changes}
    path.write_text(json.dumps(content))


def ended_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_addresses_of_a_running_stack_are_found(folder: Path) -> None:
    record(folder)
    found = resolve_settings()
    assert {name: getattr(found, name) for name in ADDRESS_FIELDS} == {
        name: RECORDED[name] for name in ADDRESS_FIELDS
    }


def test_what_is_set_wins(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(folder)
    monkeypatch.setenv("FLAGGER_TRITON_URL", "triton.example:8001")
    found = resolve_settings()
    assert found.triton_url == "triton.example:8001"
    assert found.valkey_url == RECORDED["valkey_url"]


def test_no_stack_is_asked_for_if_all_is_set(folder: Path) -> None:
    record(folder, pid=ended_pid())
    settings = Settings(kafka_bootstrap_servers="k:1", triton_url="t:2", valkey_url="valkey://v:3")
    assert fill_addresses(settings) == settings


def test_without_a_stack_the_missing_variables_are_named(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match="flagger up") as raised:
        fill_addresses(Settings(triton_url="t:2"))
    assert "FLAGGER_KAFKA_BOOTSTRAP_SERVERS, FLAGGER_VALKEY_URL: not set" in str(raised.value)
    assert "TRITON" not in str(raised.value)


def test_a_stack_that_crashed_is_not_taken_for_a_running_one(folder: Path) -> None:
    pid = ended_pid()
    record(folder, pid=pid)
    with pytest.raises(ConfigurationError, match=f"its process {pid} is gone.*flagger up"):
        resolve_settings()


def test_a_stack_without_the_service_is_no_help(folder: Path) -> None:
    record(folder, valkey_url="")
    with pytest.raises(ConfigurationError, match="FLAGGER_VALKEY_URL: not set"):
        resolve_settings()
    assert fill_addresses(Settings(valkey_url="valkey://v:3")).triton_url == RECORDED["triton_url"]


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"owner": 1}', '{"owner": {"pid": 1}, "addresses": {}}', '{"owner": null}'],
)
def test_a_damaged_record_is_said(folder: Path, text: str) -> None:
    path = folder / STACK_FILE
    path.parent.mkdir()
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"stack\.json is not what `flagger up` writes"):
        resolve_settings()
