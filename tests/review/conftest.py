"""A case store on SQLite and a real PostgreSQL, flags for it, and the desk in a real browser.

Chromium is the system's own (Debian: chromium); Playwright drives it and downloads none.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Literal

import psycopg
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from sqlalchemy import Engine, text

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.policies import set_policy
from loadtest.desk_world import DeskWorld
from loadtest.own_models import copy_repository
from review.database import migrate, open_engine
from review.store import Flag

NOW_MS = 1_790_000_000_000

MakeFlag = Callable[..., Flag]
LogIn = Callable[..., Page]
_DESK_DATABASE = 11


def find_postgres() -> Path | None:
    """Return the folder of PostgreSQL's programs: where PATH has them, or Debian's own places."""
    on_path = shutil.which("initdb")
    if on_path:
        return Path(on_path).resolve().parent
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return found[-1].parent if found else None


def unprivileged() -> dict[str, object]:
    """Return how to start PostgreSQL, which refuses to run as root: then as `nobody`."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


def _wait_for(port: int, server: subprocess.Popen[bytes]) -> None:
    deadline_s = time.monotonic() + 30
    while True:
        try:
            psycopg.connect(host="127.0.0.1", port=port, user="desk", dbname="postgres").close()
        except psycopg.OperationalError:
            assert server.poll() is None, "PostgreSQL ended at its start"
            assert time.monotonic() < deadline_s, "PostgreSQL was not ready in 30 s"
            time.sleep(0.05)
        else:
            return


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of a PostgreSQL server of this run's own, without a database name."""
    programs = find_postgres()
    if programs is None:
        pytest.fail(
            "No PostgreSQL: its `initdb` and `postgres` must be on PATH (Debian: postgresql)"
        )
    # Not in pytest's folder: that is closed to other users, and the server may have to be `nobody`.
    folder = Path(tempfile.mkdtemp(prefix="flagger-postgres-"))
    who = unprivileged()
    if who:
        shutil.chown(folder, "nobody")
    data, (port,) = folder / "data", free_ports(1)
    options = {"cwd": folder, "env": {**os.environ, "LC_ALL": "C"}, **who}
    try:
        subprocess.run(
            [
                str(programs / "initdb"),
                "-D",
                str(data),
                "-U",
                "desk",
                "-A",
                "trust",
                "-E",
                "UTF8",
                "-N",
            ],
            check=True,
            capture_output=True,
            **options,  # type: ignore[call-overload]
        )
        server = subprocess.Popen(
            [str(programs / "postgres"), "-D", str(data), "-p", str(port), "-k", str(folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **options,  # type: ignore[call-overload]
        )
        try:
            _wait_for(port, server)
            yield f"postgresql://desk@127.0.0.1:{port}"
        finally:
            server.send_signal(signal.SIGINT)  # do not wait for connections that are still open
            server.wait(30)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def new_database(request: pytest.FixtureRequest) -> Callable[[str, Path], str]:
    """Make an empty database of a kind, `sqlite` in the given file or `postgresql`; its URL."""

    def make(kind: str, file: Path) -> str:
        if kind == "sqlite":
            return f"sqlite:///{file}"
        server = request.getfixturevalue("postgres")
        name = f"desk_{uuid.uuid4().hex[:8]}"
        admin = open_engine(f"{server}/postgres")
        with admin.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"CREATE DATABASE {name}"))
        admin.dispose()
        return f"{server}/{name}"

    return make


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(
    request: pytest.FixtureRequest, new_database: Callable[[str, Path], str], tmp_path: Path
) -> str:
    """An empty database of either kind."""
    return new_database(request.param, tmp_path / "cases.db")


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """A case store with this release's layout."""
    found = open_engine(database_url)
    migrate(found)
    yield found
    found.dispose()


@pytest.fixture
def flag() -> MakeFlag:
    """Return a maker of flags."""

    def make(i: int = 1, age_ms: int = 0, **values: object) -> Flag:
        alert = Alert(
            **{  # type: ignore[arg-type]
                "transaction_id": f"t{i}",
                "customer_id": "c1",
                "terminal_id": "m1",
                "event_time": NOW_MS - age_ms,
                "amount": 100.0,
                "currency": "EUR",
                "channel": "ecom",
                "country": "DE",
                "merchant_category": "5732",
                "decision": "review",
                "decision_source": "model",
                "score": 0.5,
                "model": "fraud_fil",
                "model_version": "3",
                "policy_version": "3-1",
                "reasons": ["score 0.5 reached 0.4", "5 earlier transactions in the last hour"],
                "reason_codes": ["score", "velocity"],
                **values,
            }
        )
        return Flag(alert, NOW_MS - age_ms)

    return make


@pytest.fixture(scope="module")
def desk(stack: LocalStack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeskWorld]:
    """Streamer, desk consumer and pages as processes; nearly every payment is flagged."""
    folder = tmp_path_factory.mktemp("desk")
    repository = copy_repository(stack.model_repository, folder / "model_repository")
    set_policy(repository, review=1e-7, decline=0.999_999)
    base = stack.settings().model_copy(update={"model_repository": repository})
    with DeskWorld(base, f"browser-{uuid.uuid4().hex[:8]}", _DESK_DATABASE, folder) as world:
        yield world


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """A Chromium without a window."""
    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if found is None:
        pytest.fail("No Chromium on PATH (Debian: chromium)")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


_FAILED = pytest.StashKey[bool]()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Note for `log_in` whether its test has failed."""
    report = yield
    item.stash[_FAILED] = item.stash.get(_FAILED, False) or report.failed
    return report


@pytest.fixture
def log_in(desk: DeskWorld, browser: Browser, request: pytest.FixtureRequest) -> Iterator[LogIn]:
    """Return what logs a user in, each in a browser context of its own, and gives the queue.

    After a failure the test's report says what the pages showed.
    """
    contexts = []

    def enter(name: str, *, width: int = 1280, scheme: Literal["light", "dark"] = "light") -> Page:
        size = {"width": width, "height": width * 5 // 8}
        context = browser.new_context(viewport=size, color_scheme=scheme)  # type: ignore[arg-type]
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(15_000)
        page.goto(desk.url)
        page.fill("input[name=name]", name)
        page.fill("input[name=password]", desk.password)
        page.click("button")
        expect(page.get_by_text("since the newest flag")).to_be_visible(timeout=15_000)
        return page

    yield enter
    if request.node.stash[_FAILED]:
        for page in (page for context in contexts for page in context.pages):
            sys.stdout.write(f"--- {page.url}\n{page.locator('body').aria_snapshot()}\n")
    for context in contexts:
        context.close()
