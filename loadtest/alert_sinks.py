"""Receivers of alerts on this machine, which note what came and when: a webhook, a mail server.

    python -m loadtest.alert_sinks FOLDER

runs both in a process of their own, so that they do not wait for the load generator's thread. They
write their URLs to FOLDER/urls.json and each message to FOLDER/webhook.jsonl or FOLDER/mail.jsonl.
"""

from __future__ import annotations

import re
import signal
import sys
import threading
import time
from email import message_from_bytes, policy
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from deploy.local.server import free_ports
from flagger.files import write_atomically

__all__ = ["URLS_FILE", "MailSink", "Told", "WebhookSink", "read_told"]

URLS_FILE = "urls.json"

_IDS = re.compile(r"^(?:Transaction (\S+), terminal |- [A-Z]+ [\d,.]+ .*, (\S+)$)", re.MULTILINE)
_COUNT = re.compile(r"([\d,]+) flagged payments ")


class Told(msgspec.Struct, frozen=True):
    """One message.

    Attributes:
        at_ms: When it had come, epoch milliseconds.
        text: Its title and body.
    """

    at_ms: float
    text: str

    @property
    def transaction_ids(self) -> list[str]:
        """The transactions that it names."""
        return [single or listed for single, listed in _IDS.findall(self.text)]

    @property
    def count(self) -> int:
        """How many alerts it tells of: a digest begins with their number."""
        found = _COUNT.match(self.text)
        return int(found[1].replace(",", "")) if found else 1


class WebhookSink:
    """An HTTP server that takes every POST.

    Attributes:
        told: What came.
        url: For Apprise.
    """

    def __init__(self, told: list[Told] | None = None) -> None:
        taken: list[Told] = [] if told is None else told
        self.told = taken

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["Content-Length"]))
                at_ms = time.time() * 1000
                self.send_response(200)
                self.end_headers()
                body = msgspec.json.decode(raw, type=dict[str, Any])
                taken.append(Told(at_ms, f"{body['title']}\n{body['message']}"))

            def log_message(self, format: str, *args: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self._server.server_port}/"
        threading.Thread(target=self._server.serve_forever, name="webhook", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()


class MailSink:
    """A mail server that takes every mail.

    Attributes:
        told: What came.
        url: For Apprise.
    """

    def __init__(self, told: list[Told] | None = None) -> None:
        self.told = [] if told is None else told
        (port,) = free_ports(1)
        people = "from=flagger@example.com&to=duty@example.com"
        self.url = f"mailto://127.0.0.1:{port}/?{people}&format=text"
        self._controller = Controller(self, hostname="127.0.0.1", port=port)
        self._controller.start()

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        """Take a mail."""
        at_ms = time.time() * 1000
        content = envelope.content or b""
        raw = content.encode() if isinstance(content, str) else content
        message = message_from_bytes(raw, policy=policy.default)
        part = message.get_body(("plain", "html"))
        body = "" if part is None else str(part.get_content()).replace("\r\n", "\n")
        self.told.append(Told(at_ms, f"{message['Subject']}\n{body}"))
        return "250 OK"

    def close(self) -> None:
        """Stop listening."""
        self._controller.stop()


def read_told(file: Path) -> list[Told]:
    """Return the messages that a sink has written; the line that it is writing is left out."""
    lines = file.read_bytes().splitlines(keepends=True) if file.exists() else []
    return [msgspec.json.decode(line, type=Told) for line in lines if line.endswith(b"\n")]


class _File(list[Told]):
    """Takes the place of a sink's list: writes each message to a file at once."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._file = path.open("wb", buffering=0)

    def append(self, told: Told) -> None:
        self._file.write(msgspec.json.encode(told) + b"\n")


def _serve(folder: Path) -> None:
    sinks: dict[str, WebhookSink | MailSink] = {
        "webhook": WebhookSink(_File(folder / "webhook.jsonl")),
        "mail": MailSink(_File(folder / "mail.jsonl")),
    }
    urls = {name: sink.url for name, sink in sinks.items()}
    write_atomically(folder / URLS_FILE, msgspec.json.encode(urls).decode())
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    stop.wait()
    for sink in sinks.values():
        sink.close()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
