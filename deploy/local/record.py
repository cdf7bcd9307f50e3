"""What a running stack tells others: stack.json, with addresses and processes.

Processes are known by id and creation time, never by name: an id alone may have a new owner.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from deploy.local.server import end_process
from flagger.addresses import STACK_FILE
from flagger.errors import StackError

__all__ = ["Addresses", "is_alive", "read_record", "remove_record", "stop_recorded", "write_record"]

_OWNER_STOPS_S = 60.0
_SAME_TIME_S = 1.0
_POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Addresses:
    """Where the services listen; "" for those that this stack does not know.

    Attributes:
        kafka_bootstrap_servers: host:port.
        triton_url: host:port of gRPC.
        triton_http_url: host:port of HTTP.
        triton_metrics_url: http://host:port/metrics
        valkey_url: valkey://host:port/0
    """

    kafka_bootstrap_servers: str = ""
    triton_url: str = ""
    triton_http_url: str = ""
    triton_metrics_url: str = ""
    valkey_url: str = ""


def _identity(pid: int) -> dict[str, float]:
    """Return what tells a process from a later one with the same id."""
    return {"pid": pid, "create_time": psutil.Process(pid).create_time()}


def is_alive(identity: Mapping[str, float]) -> bool:
    """Return True if the recorded process still runs."""
    try:
        process = psutil.Process(int(identity["pid"]))
        same = abs(process.create_time() - identity["create_time"]) < _SAME_TIME_S
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def write_record(home: Path, addresses: Addresses, pids: Mapping[str, int]) -> None:
    """Record the stack that this process owns, in one step."""
    content = {
        "owner": _identity(os.getpid()),
        "processes": {name: _identity(pid) for name, pid in pids.items()},
        "addresses": asdict(addresses),
    }
    path = home / STACK_FILE.name
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(content, indent=2) + "\n")
    draft.replace(path)


def remove_record(home: Path) -> None:
    """Forget the recorded stack; without effect if there is none."""
    (home / STACK_FILE.name).unlink(missing_ok=True)


def read_record(home: Path) -> dict[str, Any] | None:
    """Return what a stack in this folder wrote about itself, or None.

    Raises:
        StackError: The file is not what `write_record` writes.
    """
    path = home / STACK_FILE.name
    try:
        record: dict[str, Any] = json.loads(path.read_text())
        for identity in (record["owner"], *record["processes"].values()):
            float(identity["pid"]), float(identity["create_time"])
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StackError(
            f"{path} is damaged ({error!r}). Delete it once none of the stack's processes runs any "
            f"more."
        ) from error
    return record


def _wait_for_end(identity: Mapping[str, float]) -> None:
    # psutil's own wait takes a process that ended for a running one until its parent has asked.
    deadline_s = time.monotonic() + _OWNER_STOPS_S
    while is_alive(identity) and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)


def stop_recorded(home: Path) -> list[str]:
    """Stop the stack that is recorded in this folder, if any; return what was stopped.

    A living owner is asked to end, so that it stops its own servers; what is left is ended here.
    """
    record = read_record(home)
    if record is None:
        return []
    stopped = []
    if is_alive(record["owner"]) and record["owner"]["pid"] != os.getpid():
        owner = psutil.Process(int(record["owner"]["pid"]))
        owner.send_signal(signal.SIGTERM)
        _wait_for_end(record["owner"])
        stopped.append("flagger up")
    for name, identity in record["processes"].items():
        if is_alive(identity):
            end_process(int(identity["pid"]))
            stopped.append(name)
    remove_record(home)
    return stopped
