"""Boards into a Grafana server over its HTTP API, by grafana-client.

The API: https://grafana.com/docs/grafana/latest/developers/http_api/ (folder, dashboard).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import requests
from grafana_client import GrafanaApi
from grafana_client.client import GrafanaClientError, GrafanaException

from flagger.errors import GrafanaError

__all__ = ["FOLDER_TITLE", "FOLDER_UID", "Pushed", "push"]

FOLDER_UID = "fraud-flagger"
FOLDER_TITLE = "Fraud Flagger"
_TIMEOUT_S = 10.0
_NOT_FOUND = 404
_DENIED = (401, 403)


@dataclass(frozen=True, slots=True)
class Pushed:
    """A board that Grafana took.

    Attributes:
        title: The board's title.
        url: Its path on the server.
        version: Grafana's number of this state of the board.
    """

    title: str
    url: str
    version: int


def push(
    url: str, token: str, boards: dict[str, dict[str, Any]], *, message: str = ""
) -> list[Pushed]:
    """Make the folder if it is missing, and put all boards in, over what is there.

    Pushing twice changes nothing more than the boards' version.

    Args:
        url: The server's address; a path prefix is kept.
        token: Of a service account that may write folders and dashboards.
        boards: Name -> board.
        message: Stands in Grafana's history of each board.

    Raises:
        GrafanaError: The server is away, denies the token, or refuses a board.
    """
    client = GrafanaApi.from_url(url.rstrip("/") + "/", credential=token, timeout=_TIMEOUT_S)
    try:
        _ensure_folder(client)
        return [_push_one(client, board, message) for board in boards.values()]
    except GrafanaException as error:
        if error.status_code in _DENIED:
            raise GrafanaError(
                f"Grafana at {url} denies the token ({error.status_code}: {_said(error)}). It must "
                f"belong to a service account with the role Editor, and not have expired."
            ) from error
        raise GrafanaError(
            f"Grafana at {url} answered {error.status_code}: {_said(error)}."
        ) from error
    except (requests.RequestException, KeyError, TypeError) as error:
        raise GrafanaError(
            f"{url} did not answer as Grafana does ({type(error).__name__}: {error}). Check the "
            f"address and that the server runs."
        ) from error


def _said(error: GrafanaException) -> str:
    response = error.response
    text = response.get("message", response) if isinstance(response, dict) else response
    return str(text)[:300].rstrip(".")


def _ensure_folder(client: Any) -> None:
    try:
        client.folder.get_folder(FOLDER_UID)
    except GrafanaClientError as error:
        if error.status_code != _NOT_FOUND:
            raise
        client.folder.create_folder(FOLDER_TITLE, uid=FOLDER_UID)


def _push_one(client: Any, board: dict[str, Any], message: str) -> Pushed:
    payload = {
        "dashboard": {**board, "id": None},  # found by its uid, on every server
        "folderUid": FOLDER_UID,
        "overwrite": True,
        "message": message,
    }
    answer = client.dashboard.update_dashboard(payload)
    return Pushed(board["title"], answer["url"], answer["version"])
