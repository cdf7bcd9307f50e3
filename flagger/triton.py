"""The one seam to Triton: request and answer as arrays, errors mapped to ours.

`flagger.triton_tensors` says how rows are sent and answers are read.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from tritonclient.utils import InferenceServerException

from flagger.errors import ConfigurationError, ModelUnavailableError
from flagger.tracing import trace_headers
from flagger.triton_address import endpoint
from flagger.triton_errors import ModelName, map_error
from flagger.triton_tensors import (
    INPUT,
    OUTPUT,
    Read,
    explanation_outputs,
    read_contributions,
    read_scores,
    request_of,
)

__all__ = [
    "CHANNEL_OPTIONS",
    "GATEWAY_PRIORITY",
    "MAX_EXPLAINED_ROWS",
    "MAX_UNDER_WAY",
    "STREAMER_PRIORITY",
    "AsyncScorer",
    "ModelName",
    "Pending",
    "PendingScores",
    "Scorer",
]

CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", 2**31 - 1),
    ("grpc.max_receive_message_length", 2**31 - 1),
    # HTTP_PROXY is for the way out, not for the model server; gRPC would send loopback there too.
    ("grpc.enable_http_proxy", 0),
]
GATEWAY_PRIORITY = 1
"""Payments that wait for an answer go first in Triton's queue, where its configuration has priority
levels; ours has none, see `export.configs`."""
STREAMER_PRIORITY = 2
_MAX_IN_FLIGHT = 128
"""Requests of one `Scorer` at a time, twice the largest setting of the streamer: as many may wait
for scores as for explanations. Further ones wait for their turn."""
ANSWER_LIMIT_MS = 2_000
"""Limit, in the client library, of a request whose caller waits for less. A limit that passes there
cancels the request in the server, and Tritons of 2024 and early 2025 can die of a request that is
cancelled while it is answered (server issues 7368 and 8034): under overload, when they are needed
most. So the caller stops waiting, and the server answers nobody."""
MAX_UNDER_WAY = 64
"""Requests of one `AsyncScorer` not answered yet, whether anybody waits for them or not."""
_CLOSE_S = 1.0
MAX_EXPLAINED_ROWS = 8
"""Most rows of one request for contributions: about 1 ms of a core each, and whoever comes next
waits for them."""


class Pending:
    """An answer that is under way. `result` waits for it.

    Args:
        answer: What the client library will return or raise.
        n: Rows that were sent.
        model: Who was asked.
        read: Takes our array out of the client library's answer.
    """

    def __init__(
        self, answer: Future[Any], n: int, model: ModelName, read: Read = read_scores
    ) -> None:
        self._answer = answer
        self._n = n
        self._model = model
        self._read = read

    @property
    def done(self) -> bool:
        """True if `result` will not wait."""
        return self._answer.done()

    def wait(self, limit_s: float) -> None:
        """Wait until `done`, up to `limit_s` seconds."""
        wait([self._answer], limit_s)

    def result(self, timeout_s: float) -> npt.NDArray[np.float32]:
        """Return the scores, float32 [n], or the contributions, float32 [n, F + 1].

        Raises:
            ModelUnavailableError: Worth a retry; also when nothing came within `timeout_s`.
            ModelRefusedError: The same rows will be refused again.
        """
        try:
            result = self._answer.result(timeout_s)
        except TimeoutError:
            raise ModelUnavailableError(
                f"Triton did not answer for {self._model.name} within {timeout_s:.1f} s."
            ) from None
        except InferenceServerException as error:
            raise map_error(error, self._model) from error
        return self._read(result, self._n, self._model)


PendingScores = Pending
"""What `Scorer.submit` returns."""


class Scorer:
    """Pipelined scoring over one gRPC channel, for the streamer.

    Each request under way has a thread that waits for its answer. The client library's own
    `async_infer` starts a thread whenever nothing else is under way, and its caller waits for that.

    Args:
        url: host:port of Triton's gRPC endpoint.
        timeout_ms: Limit of one request, on the client and in the server's queue.
    """

    def __init__(self, url: str, *, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._client = triton.InferenceServerClient(**endpoint(url), channel_args=CHANNEL_OPTIONS)
        self._threads = ThreadPoolExecutor(_MAX_IN_FLIGHT, thread_name_prefix="triton")

    def submit(self, rows: npt.NDArray[np.float32], model: ModelName) -> PendingScores:
        """Send float32 [n, F] rows; returns at once."""
        return self._send(rows, model, self._timeout_ms, self._timeout_ms, None, read_scores)

    def explain(self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: int) -> Pending:
        """Ask why: the contributions of float32 [n, F] rows, float32 [n, F + 1]; returns at once.

        Args:
            rows: 1 to MAX_EXPLAINED_ROWS rows.
            model: The entry that explains (`flagger.models.EXPLAIN_ENTRY`) and the version.
            timeout_ms: How long the caller will wait.
        """
        limit_ms = max(timeout_ms, ANSWER_LIMIT_MS)
        outputs = explanation_outputs()
        return self._send(rows, model, timeout_ms, limit_ms, outputs, read_contributions)

    def _send(
        self,
        rows: npt.NDArray[np.float32],
        model: ModelName,
        timeout_ms: int,
        limit_ms: int,
        outputs: list[Any] | None,
        read: Read,
    ) -> Pending:
        answer = self._threads.submit(
            self._client.infer,
            model.name,
            request_of(rows),
            model_version=model.version,
            outputs=outputs,
            priority=STREAMER_PRIORITY,
            timeout=timeout_ms * 1000,
            client_timeout=limit_ms / 1000,
        )
        return Pending(answer, len(rows), model, read)

    def score(self, rows: npt.NDArray[np.float32], model: ModelName) -> npt.NDArray[np.float32]:
        """Send rows and wait for the scores, float32 [n]."""
        return self.submit(rows, model).result(self._timeout_ms / 1000 + 1)

    def is_ready(self, model: ModelName) -> bool:
        """Return True if the server answers and the model version is loaded."""
        try:
            return bool(self._client.is_model_ready(model.name, model.version, client_timeout=2))
        except InferenceServerException:
            return False

    def check_shape(self, model: ModelName, n_features: int) -> None:
        """Raise ConfigurationError unless the served model takes and gives what we expect."""
        try:
            found = self._client.get_model_metadata(model.name, model.version, as_json=True)
        except InferenceServerException as error:
            raise map_error(error, model) from error
        inputs = {t["name"]: [int(d) for d in t["shape"]] for t in found.get("inputs", [])}
        outputs = {t["name"] for t in found.get("outputs", [])}
        if inputs.get(INPUT, [0])[-1] != n_features or OUTPUT not in outputs:
            raise ConfigurationError(
                f"Triton serves {model.name} version {model.version} with inputs {inputs} and "
                f"outputs {sorted(outputs)}; needed are {INPUT} [-1, {n_features}] and {OUTPUT}. "
                f"Export the model again with this release."
            )

    def close(self) -> None:
        """Close the channel; requests under way are cancelled."""
        self._client.close()
        self._threads.shutdown(cancel_futures=True)


class AsyncScorer:
    """Scoring on an event loop, for the gateway.

    Whoever gives up, by its limit or because it is cancelled, leaves the request to the server
    (`ANSWER_LIMIT_MS` says why). At most `MAX_UNDER_WAY` are with it; further ones fail at once.
    """

    def __init__(self, url: str) -> None:
        self._under_way: set[asyncio.Task[Any]] = set()
        self._client = triton_aio.InferenceServerClient(
            **endpoint(url), channel_args=CHANNEL_OPTIONS
        )

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Score float32 [n, F] rows within `timeout_ms`; raises ModelError."""
        return await self._ask(rows, model, timeout_ms, None, read_scores)

    async def explain(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the contributions of float32 [n, F] rows, float32 [n, F + 1].

        Args:
            rows: 1 to MAX_EXPLAINED_ROWS rows.
            model: The entry that explains (`flagger.models.EXPLAIN_ENTRY`) and the version.
            timeout_ms: Limit of this request.

        Raises:
            ModelError: There is no explanation; the decision stands all the same.
        """
        return await self._ask(rows, model, timeout_ms, explanation_outputs(), read_contributions)

    async def _ask(
        self,
        rows: npt.NDArray[np.float32],
        model: ModelName,
        timeout_ms: float,
        outputs: list[Any] | None,
        read: Read,
    ) -> npt.NDArray[np.float32]:
        if len(self._under_way) >= MAX_UNDER_WAY:
            raise ModelUnavailableError(
                f"Triton has not answered {MAX_UNDER_WAY} requests of this process yet, the most "
                f"there may be: it is too slow, or hangs."
            )
        answer = asyncio.create_task(
            self._client.infer(
                model.name,
                request_of(rows),
                model_version=model.version,
                outputs=outputs,
                priority=GATEWAY_PRIORITY,
                timeout=max(int(timeout_ms * 1000), 1),
                client_timeout=max(timeout_ms, ANSWER_LIMIT_MS) / 1000,
                headers=trace_headers(),
            )
        )
        self._under_way.add(answer)
        answer.add_done_callback(self._answered)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                result = await asyncio.shield(answer)
        except TimeoutError:
            raise ModelUnavailableError(
                f"Triton did not answer for {model.name} within {timeout_ms:.0f} ms."
            ) from None
        except InferenceServerException as error:
            raise map_error(error, model) from error
        return read(result, len(rows), model)

    def _answered(self, answer: asyncio.Task[Any]) -> None:
        self._under_way.discard(answer)
        if not answer.cancelled():
            answer.exception()  # somebody has seen it, or nobody wants to

    async def is_ready(self, model: ModelName) -> bool:
        """Return True if the server answers and the model version is loaded."""
        try:
            return bool(
                await self._client.is_model_ready(model.name, model.version, client_timeout=2)
            )
        except InferenceServerException:
            return False

    async def close(self) -> None:
        """Close the channel; what is under way has a second to be answered."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=_CLOSE_S)
        await self._client.close()
