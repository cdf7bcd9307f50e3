"""The gateway's calls to Triton: one row at a time, so what surrounds a call counts.

Messages are written and read here, without the client library's request and result objects, which
cost a quarter of a call's CPU; most of what is left is gRPC itself.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from flagger.errors import ConfigurationError, ModelRefusedError
from flagger.tracing import trace_headers
from flagger.triton import CHANNEL_OPTIONS, CONTRIBUTIONS, GATEWAY_PRIORITY, INPUT, OUTPUT
from flagger.triton_address import endpoint
from flagger.triton_errors import ModelName, map_error

__all__ = ["PROBE_TIMEOUT_S", "GatewayScorer"]

PROBE_TIMEOUT_S = 1.0
"""Limit of each readiness check; they run side by side."""


def _channel(url: str) -> grpc.aio.Channel:
    address = endpoint(url)
    if not address.get("ssl"):
        return grpc.aio.insecure_channel(address["url"], options=CHANNEL_OPTIONS)
    paths = {name: path for name, path in address.items() if name not in {"url", "ssl"}}
    try:
        files = {name: Path(path).read_bytes() for name, path in paths.items()}
    except OSError as error:
        raise ConfigurationError(
            f"FLAGGER_TRITON_URL: {error.filename} cannot be read: {error.strerror}."
        ) from error
    credentials = grpc.ssl_channel_credentials(**files)
    return grpc.aio.secure_channel(address["url"], credentials, options=CHANNEL_OPTIONS)


class GatewayScorer:
    """A `gateway.ports.ModelScorer` over gRPC; cancelling a call cancels it in the server.

    Args:
        url: See `flagger.triton_address`.
    """

    def __init__(self, url: str) -> None:
        self._grpc = _channel(url)
        self._stub: Any = service_pb2_grpc.GRPCInferenceServiceStub(self._grpc)

    async def score(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the scores of float32 [n, F] rows, float32 [n]; raises ModelError."""
        n = len(rows)
        output = await self._ask(rows, model, OUTPUT, timeout_ms)
        if output.size not in (n, 2 * n):
            raise ModelRefusedError(
                f"{model.name} version {model.version} answered {output.size} scores for {n} rows; "
                f"export the model again."
            )
        scores = output if output.size == n else output[1::2]
        if not ((scores >= 0.0) & (scores <= 1.0)).all():  # NaN is neither
            raise ModelRefusedError(
                f"{model.name} version {model.version} answered scores outside 0 to 1: not a "
                f"probability of fraud. Export the model again."
            )
        return scores

    async def explain(
        self, rows: npt.NDArray[np.float32], model: ModelName, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return the contributions of [n, F] rows, float32 [n, F + 1]; raises ModelError."""
        output = await self._ask(rows, model, CONTRIBUTIONS, timeout_ms)
        if output.size == 0 or output.size % len(rows) or not np.isfinite(output).all():
            raise ModelRefusedError(
                f"{model.name} version {model.version} answered {output.size} contributions for "
                f"{len(rows)} rows, or numbers that are not finite; export the model again."
            )
        return output.reshape(len(rows), -1)

    async def _ask(
        self, rows: npt.NDArray[np.float32], model: ModelName, output: str, timeout_ms: float
    ) -> npt.NDArray[np.float32]:
        """Return one output of the model, float32, flat; an output of that name is asked for."""
        if rows.ndim != 2 or rows.dtype != np.float32:
            raise ValueError(f"rows must be float32 [n, F], not {rows.dtype} {rows.shape}")
        request = service_pb2.ModelInferRequest(
            model_name=model.name, model_version=model.version, raw_input_contents=[rows.tobytes()]
        )
        request.inputs.add(name=INPUT, datatype="FP32", shape=rows.shape)
        request.outputs.add(name=output)
        request.parameters["priority"].uint64_param = GATEWAY_PRIORITY
        request.parameters["timeout"].int64_param = max(int(timeout_ms * 1000), 1)
        headers = trace_headers()
        try:
            answer = await self._stub.ModelInfer(
                request,
                timeout=timeout_ms / 1000,
                metadata=None if headers is None else tuple(headers.items()),
            )
        except grpc.aio.AioRpcError as error:
            raise map_error(_theirs(error), model) from error
        found = [
            (tensor.name, tensor.datatype, 4 * math.prod(tensor.shape)) for tensor in answer.outputs
        ]
        sizes = [len(raw) for raw in answer.raw_output_contents]
        if found != [(output, "FP32", size) for size in sizes] or len(sizes) != 1:
            raise ModelRefusedError(
                f"{model.name} version {model.version} does not answer {output} as 32-bit numbers "
                f"(name, type, bytes: {found}; bytes sent: {sizes}); export the model again."
            )
        return np.frombuffer(answer.raw_output_contents[0], dtype=np.float32)

    async def is_live(self) -> bool:
        """Return True if the server answers, whatever models it has."""
        try:
            request = service_pb2.ServerLiveRequest()
            return bool((await self._stub.ServerLive(request, timeout=PROBE_TIMEOUT_S)).live)
        except grpc.aio.AioRpcError:
            return False

    async def is_ready(self, model: ModelName) -> bool:
        """Return True if the model version is loaded."""
        request = service_pb2.ModelReadyRequest(name=model.name, version=model.version)
        try:
            return bool((await self._stub.ModelReady(request, timeout=PROBE_TIMEOUT_S)).ready)
        except grpc.aio.AioRpcError:
            return False

    async def close(self) -> None:
        """Close the channel."""
        await self._grpc.close()


def _theirs(error: grpc.aio.AioRpcError) -> InferenceServerException:
    """Return gRPC's error as the client library reports it, so that there is one table of them."""
    return InferenceServerException(msg=error.details() or "", status=str(error.code()))
