"""The client library's errors as ours: refused, or unavailable and worth a retry."""

from __future__ import annotations

from dataclasses import dataclass

from tritonclient.utils import InferenceServerException

from flagger.errors import ModelError, ModelRefusedError, ModelUnavailableError

__all__ = ["ModelName", "map_error"]

# gRPC status -> may the same rows be sent again? A status that is missing here fails a test.
_RETRYABLE = {
    "CANCELLED": True,
    "UNKNOWN": True,
    "INVALID_ARGUMENT": False,
    "DEADLINE_EXCEEDED": True,
    "NOT_FOUND": True,  # the model is not loaded (yet)
    "ALREADY_EXISTS": False,
    "PERMISSION_DENIED": False,
    "RESOURCE_EXHAUSTED": True,
    "FAILED_PRECONDITION": True,
    "ABORTED": True,
    "OUT_OF_RANGE": False,
    "UNIMPLEMENTED": False,
    "INTERNAL": False,
    "UNAVAILABLE": True,
    "DATA_LOSS": True,
    "UNAUTHENTICATED": False,
}


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model entry of the repository and its version."""

    name: str
    version: str


def map_error(error: InferenceServerException, model: ModelName) -> ModelError:
    """Return our error for the client library's: refused, or unavailable and worth a retry."""
    status = (error.status() or "UNKNOWN").removeprefix("StatusCode.")
    text = f"Triton answered {status} for {model.name} version {model.version}: {error.message()}"
    if _RETRYABLE.get(status, False):
        return ModelUnavailableError(text)
    return ModelRefusedError(text)
