"""The one seam to Triton: request and answer as arrays, errors mapped to ours.

`flagger.triton_tensors` says how rows are sent and answers are read.
"""

from __future__ import annotations

import queue
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
MAX_EXPLAINED_ROWS = 8
"""Most rows of one request for contributions: about 1 ms of a core each, and whoever comes next
waits for them."""


class Pending:
    """An answer that is under way. `result` waits for it.

    Args:
        n: Rows that were sent.
        model: Who was asked.
        read: Takes our array out of the client library's answer.
    """

    def __init__(self, n: int, model: ModelName, read: Read = read_scores) -> None:
        self._n = n
        self._model = model
        self._read = read
        self._answers: queue.SimpleQueue[tuple[Any, Any]] = queue.SimpleQueue()

    def _complete(self, result: Any, error: Any) -> None:
        self._answers.put((result, error))

    @property
    def done(self) -> bool:
        """True if `result` will not wait."""
        return not self._answers.empty()

    def result(self, timeout_s: float) -> npt.NDArray[np.float32]:
        """Return the scores, float32 [n], or the contributions, float32 [n, F + 1]; call it once.

        Raises:
            ModelUnavailableError: Worth a retry; also when nothing came within `timeout_s`.
            ModelRefusedError: The same rows will be refused again.
        """
        try:
            result, error = self._answers.get(timeout=timeout_s)
        except queue.Empty:
            raise ModelUnavailableError(
                f"Triton did not answer for {self._model.name} within {timeout_s:.1f} s."
            ) from None
        if error is not None:
            raise map_error(error, self._model) from error
        return self._read(result, self._n, self._model)


PendingScores = Pending
"""What `Scorer.submit` returns."""


class Scorer:
    """Pipelined scoring over one gRPC channel, for the streamer.

    Args:
        url: host:port of Triton's gRPC endpoint.
        timeout_ms: Limit of one request, on the client and in the server's queue.
    """

    def __init__(self, url: str, *, timeout_ms: int) -> None:
        self._timeout_ms = timeout_ms
        self._client = triton.InferenceServerClient(**endpoint(url), channel_args=CHANNEL_OPTIONS)

    def submit(self, rows: npt.NDArray[np.float32], model: ModelName) -> PendingScores:
        """Send float32 [n, F] rows; returns at once."""
        return self._send(rows, model, self._timeout_ms, None, read_scores)

    def explain(self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: int) -> Pending:
        """Ask why: the contributions of float32 [n, F] rows, float32 [n, F + 1]; returns at once.

        Args:
            rows: 1 to MAX_EXPLAINED_ROWS rows.
            model: The entry that explains (`flagger.models.EXPLAIN_ENTRY`) and the version.
            timeout_ms: Limit of this request.
        """
        return self._send(rows, model, timeout_ms, explanation_outputs(), read_contributions)

    def _send(
        self,
        rows: npt.NDArray[np.float32],
        model: ModelName,
        timeout_ms: int,
        outputs: list[Any] | None,
        read: Read,
    ) -> Pending:
        pending = Pending(len(rows), model, read)
        self._client.async_infer(
            model.name,
            request_of(rows),
            pending._complete,  # noqa: SLF001 - the two classes are one mechanism
            model_version=model.version,
            outputs=outputs,
            priority=STREAMER_PRIORITY,
            timeout=timeout_ms * 1000,
            client_timeout=timeout_ms / 1000,
        )
        return pending

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
        """Close the channel."""
        self._client.close()


class AsyncScorer:
    """Scoring on an event loop, for the gateway. Cancelling the call cancels it in the server."""

    def __init__(self, url: str) -> None:
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
        try:
            result = await self._client.infer(
                model.name,
                request_of(rows),
                model_version=model.version,
                outputs=outputs,
                priority=GATEWAY_PRIORITY,
                timeout=max(int(timeout_ms * 1000), 1),
                client_timeout=timeout_ms / 1000,
                headers=trace_headers(),
            )
        except InferenceServerException as error:
            raise map_error(error, model) from error
        return read(result, len(rows), model)

    async def is_ready(self, model: ModelName) -> bool:
        """Return True if the server answers and the model version is loaded."""
        try:
            return bool(
                await self._client.is_model_ready(model.name, model.version, client_timeout=2)
            )
        except InferenceServerException:
            return False

    async def close(self) -> None:
        """Close the channel."""
        await self._client.close()
