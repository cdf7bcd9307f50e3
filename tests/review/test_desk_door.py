"""Who gets in: users, logins, and the door before the pages."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from flagger.cli import cli
from flagger.errors import ConfigurationError
from review.database import open_engine, require_layout
from review.door import COOKIE, MAX_FAILURES, LoginRequired, LoginRoutes
from review.logins import Logins
from review.users import UserFile

PASSWORD = "correct horse"
HOUR_MS = 3_600_000


class Clock:
    now_ms = 1_790_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture(scope="module")
def users_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once: hashing a password takes a tenth of a second on purpose."""
    file = UserFile(tmp_path_factory.mktemp("users") / "users.json")
    file.put("ann", "analyst", PASSWORD)
    file.put("lea", "lead", PASSWORD)
    return file.path


@pytest.fixture
def users(users_file: Path, tmp_path: Path) -> UserFile:
    return UserFile(Path(shutil.copy(users_file, tmp_path)))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(tmp_path: Path, users: UserFile, clock: Clock) -> Iterator[Logins]:
    engine = open_engine(f"sqlite:///{tmp_path / 'cases.db'}")
    require_layout(engine)
    yield Logins(engine, users, clock, HOUR_MS)
    engine.dispose()


async def hello(_request: object) -> PlainTextResponse:
    return PlainTextResponse("secret page")


async def talk(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("secret talk")
    await socket.close()


@pytest.fixture
def client(logins: Logins, clock: Clock) -> Iterator[TestClient]:
    """The door before an application that shows secrets to everybody."""
    door = LoginRoutes(logins, lambda: clock.now_ms / 1000)
    app = Starlette(
        routes=[
            *door.routes(),
            Mount("/static", Starlette(routes=[Route("/a.js", hello)])),
            Route("/", hello),
            WebSocketRoute("/_stcore/stream", talk),
        ],
        middleware=[Middleware(LoginRequired, logins=logins)],
    )
    with TestClient(app, follow_redirects=False) as found:
        yield found


def test_the_file_holds_no_password_and_is_its_owners(users: UserFile) -> None:
    assert PASSWORD not in users.path.read_text()
    assert stat.S_IMODE(users.path.stat().st_mode) == 0o600
    hashes = {user.hash for user in users.all().values()}
    assert len(hashes) == 2  # the same password, another salt


def test_passwords_are_checked(users: UserFile) -> None:
    assert users.check("ann", PASSWORD) is not None
    assert users.check("ann", PASSWORD + "x") is None
    assert users.check("nobody", PASSWORD) is None
    assert users.check("ann", "") is None
    users.put("ann", "lead", "another one")
    assert users.check("ann", PASSWORD) is None
    changed = users.check("ann", "another one")
    assert changed is not None
    assert changed.analyst().role == "lead"


@pytest.mark.parametrize(
    ("name", "password", "said"),
    [("a b", PASSWORD, "cannot be"), ("system", PASSWORD, "cannot be"), ("eve", "short", "needs")],
)
def test_bad_names_and_passwords(users: UserFile, name: str, password: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        users.put(name, "analyst", password)


def test_a_login_ends_by_time_by_logout_and_with_its_user(
    engine: Engine, users: UserFile, clock: Clock
) -> None:
    logins = Logins(engine, users, clock, HOUR_MS)
    tokens = [logins.start("ann", PASSWORD) or "" for _ in range(3)]
    assert all(logins.find(token) is not None for token in tokens)
    assert logins.find("x") is None
    logins.end(tokens[0])
    assert logins.find(tokens[0]) is None
    clock.now_ms += HOUR_MS
    assert logins.find(tokens[1]) is None
    fresh = logins.start("ann", PASSWORD) or ""
    users.remove("ann")
    assert logins.find(fresh) is None


def test_without_a_login_nothing_is_shown(client: TestClient) -> None:
    answer = client.get("/")
    assert (answer.status_code, answer.headers["location"]) == (303, "login")
    assert client.get("/", headers={"Cookie": f"{COOKIE}=forged"}).status_code == 303
    assert client.get("/static/../").status_code == 303
    with (
        pytest.raises(WebSocketDisconnect) as closed,
        client.websocket_connect("/_stcore/stream"),
    ):
        pass
    assert closed.value.code == 4401


def test_open_are_form_health_and_the_librarys_scripts(client: TestClient) -> None:
    form = client.get("/login")
    assert form.status_code == 200
    assert form.headers["x-frame-options"] == "DENY"
    assert client.get("/healthz").text == "ok\n"
    assert client.get("/static/a.js").status_code == 200


def test_in_and_out(client: TestClient) -> None:
    answer = client.post("/login", data={"name": "ann", "password": PASSWORD})
    assert answer.status_code == 303
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert client.get("/").text == "secret page"
    with client.websocket_connect("/_stcore/stream") as socket:
        assert socket.receive_text() == "secret talk"
    kept = client.cookies[COOKIE]
    client.get("/logout")
    assert client.get("/", headers={"Cookie": f"{COOKIE}={kept}"}).status_code == 303


def test_who_guesses_has_to_wait(client: TestClient, clock: Clock) -> None:
    def attempt(password: str, name: str = "ann") -> int:
        return client.post("/login", data={"name": name, "password": password}).status_code

    assert [attempt("wrong") for _ in range(MAX_FAILURES)] == [401] * MAX_FAILURES
    assert attempt(PASSWORD) == 429
    assert attempt(PASSWORD, "lea") == 303
    clock.now_ms += 301_000
    assert attempt(PASSWORD) == 303


def test_a_huge_form_is_refused(client: TestClient) -> None:
    answer = client.post("/login", data={"name": "ann", "password": "x" * 10_000})
    assert answer.status_code == 413


def test_commands_for_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "users.json"
    monkeypatch.setenv("FLAGGER_DESK_USERS_FILE", str(path))
    runner = CliRunner()
    added = runner.invoke(
        cli, ["desk", "add-user", "eve", "--role", "lead", "--password-stdin"], input=PASSWORD
    )
    assert added.exit_code == 0, added.output
    user = UserFile(path).check("eve", PASSWORD)
    assert user is not None
    assert user.role == "lead"
    assert runner.invoke(cli, ["desk", "remove-user", "eve"]).exit_code == 0
    gone = runner.invoke(cli, ["desk", "remove-user", "eve"])
    assert isinstance(gone.exception, ConfigurationError)


def test_pages_are_not_served_without_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAGGER_DESK_USERS_FILE", str(tmp_path / "none.json"))
    monkeypatch.setenv("FLAGGER_CASE_STORE_URL", f"sqlite:///{tmp_path / 'cases.db'}")
    result = CliRunner().invoke(cli, ["desk", "serve", "--port", "1"])
    assert isinstance(result.exception, ConfigurationError)
    assert "flagger desk add-user" in str(result.exception)


def test_migrate_tells_what_it_did(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAGGER_CASE_STORE_URL", f"sqlite:///{tmp_path / 'cases.db'}")
    outputs = [CliRunner().invoke(cli, ["desk", "migrate"]).output for _ in range(2)]
    assert outputs == ["layout none -> 0001\n", "layout 0001\n"]
