"""`flagger grafana push` against a small HTTP server that follows Grafana's documented API.

No Grafana server runs here: what is proved is that our requests are those that the documentation
of the folder and dashboard API asks for, and that its answers and errors are understood.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from flagger.errors import GrafanaError
from grafana.cli import grafana
from grafana.generate import boards_as_objects
from grafana.push import push

TOKEN = "glsa_" + "x" * 32
PREFIX = "/grafana"


@dataclass
class DocumentedGrafana:
    """Folders, boards, and what was asked; answers as the API's documentation shows them."""

    url: str = ""
    folders: dict[str, str] = field(default_factory=dict)
    boards: dict[str, dict[str, Any]] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    requests: list[tuple[str, str]] = field(default_factory=list)
    refuse: tuple[int, dict[str, str]] | None = None

    def answer(self, method: str, path: str, token: str, body: Any) -> tuple[int, Any]:
        self.requests.append((method, path))
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Invalid API key"}
        if method == "GET" and path.startswith("/api/folders/"):
            uid = path.rsplit("/", 1)[1]
            if uid not in self.folders:
                return 404, {"message": "folder not found", "status": "not-found"}
            return 200, {"id": 1, "uid": uid, "title": self.folders[uid], "version": 1}
        if (method, path) == ("POST", "/api/folders"):
            self.folders[body["uid"]] = body["title"]
            return 200, {"id": 1, **body, "url": f"/dashboards/f/{body['uid']}", "version": 1}
        if (method, path) == ("POST", "/api/dashboards/db"):
            return self.save(body)
        return 404, {"message": "Not found"}

    def save(self, body: Any) -> tuple[int, Any]:
        if self.refuse:
            return self.refuse
        board = body["dashboard"]
        if body["folderUid"] not in self.folders:
            return 400, {"message": "folder not found"}
        if board["uid"] in self.boards and not body["overwrite"]:
            return 412, {"status": "version-mismatch", "message": "somebody else changed it"}
        self.boards[board["uid"]] = body
        self.versions[board["uid"]] = version = self.versions.get(board["uid"], 0) + 1
        url = f"/d/{board['uid']}/x"
        return 200, {
            "id": 1, "uid": board["uid"], "url": url, "status": "success", "version": version,
        }  # fmt: skip


@pytest.fixture
def server() -> Iterator[DocumentedGrafana]:
    state = DocumentedGrafana()

    class Handler(BaseHTTPRequestHandler):
        def reply(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = json.loads(self.rfile.read(length)) if length else None
            path = self.path.removeprefix(PREFIX)
            status, answer = state.answer(
                self.command, path, self.headers.get("Authorization", ""), body
            )
            data = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PUT = reply

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        state.url = f"http://127.0.0.1:{http.server_address[1]}{PREFIX}"
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        yield state
        http.shutdown()
        thread.join()


def test_all_boards_arrive_in_their_folder(server: DocumentedGrafana, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{TOKEN}\n")
    arguments = ["push", "--url", server.url, "--token-file", str(token), "--message", "why"]
    result = CliRunner().invoke(grafana, arguments, catch_exceptions=False)
    assert result.exit_code == 0
    assert server.folders == {"fraud-flagger": "Fraud Flagger"}
    expected = {board["uid"]: board for board in boards_as_objects().values()}
    assert server.boards.keys() == expected.keys()
    for uid, body in server.boards.items():
        assert body["dashboard"] == {**expected[uid], "id": None}
        assert (body["folderUid"], body["message"]) == ("fraud-flagger", "why")
        assert f"{server.url}/d/{uid}/x (version 1)" in result.output
    assert TOKEN not in result.output


def test_pushing_again_replaces(server: DocumentedGrafana) -> None:
    push(server.url, TOKEN, boards_as_objects())
    again = push(server.url + "/", TOKEN, boards_as_objects())
    assert {board.version for board in again} == {2}
    assert server.requests.count(("POST", "/api/folders")) == 1


def test_a_wrong_token_is_named_as_the_reason(server: DocumentedGrafana) -> None:
    with pytest.raises(GrafanaError, match=r"denies the token.*role Editor"):
        push(server.url, "wrong", boards_as_objects())
    assert not server.boards


def test_grafanas_own_words_reach_the_operator(server: DocumentedGrafana) -> None:
    server.refuse = (400, {"message": "Dashboard title cannot be empty"})
    with pytest.raises(GrafanaError, match="400: Dashboard title cannot be empty"):
        push(server.url, TOKEN, boards_as_objects())


def test_a_server_that_is_away(server: DocumentedGrafana) -> None:
    with pytest.raises(GrafanaError, match="Check the address"):
        push("http://127.0.0.1:9", TOKEN, boards_as_objects())


def test_an_empty_token_file_is_refused_before_anything_is_sent(
    server: DocumentedGrafana, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("\n")
    arguments = ["push", "--url", server.url, "--token-file", str(token)]
    result = CliRunner().invoke(grafana, arguments)
    assert "is empty" in str(result.exception)
    assert server.requests == []
