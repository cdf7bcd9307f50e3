"""A running Triton in explicit model control: load a version, ask it, take it away again."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from flagger.errors import ModelError, PublishError
from flagger.models import ENTRIES, EXPLAIN_ENTRY
from flagger.triton import CHANNEL_OPTIONS, MAX_EXPLAINED_ROWS, ModelName, Scorer
from flagger.triton_address import endpoint
from flagger.triton_errors import map_error

__all__ = ["ModelServer"]

_LOAD_TIMEOUT_S = 120.0
_SCORE_TIMEOUT_MS = 30_000
_ROWS_PER_REQUEST = 1_000


class ModelServer:
    """The model-control side of one Triton server.

    Triton reads an entry's folder again on each load request: it loads the versions that are new,
    unloads those that are gone, and leaves the others serving. If a new version does not load, the
    others stay as they were.

    Args:
        url: host:port of its gRPC endpoint.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._client = triton.InferenceServerClient(**endpoint(url), channel_args=CHANNEL_OPTIONS)
        self._scorer = Scorer(url, timeout_ms=_SCORE_TIMEOUT_MS)

    def load(self) -> None:
        """Make the server serve exactly the versions that are on disk, in all entries.

        Raises:
            PublishError: It refused, or does not run in explicit model control.
        """
        for entry in ENTRIES:
            try:
                self._client.load_model(entry, client_timeout=_LOAD_TIMEOUT_S)
            except InferenceServerException as error:
                raise PublishError(
                    f"Triton at {self._url} did not load {entry}: {error.message()}. Does it run "
                    f"on this model repository, with --model-control-mode=explicit? Its log tells "
                    f"more."
                ) from error

    def unload(self) -> None:
        """Stop serving all entries: for a repository whose last version was taken away."""
        for entry in ENTRIES:
            try:
                self._client.unload_model(entry, client_timeout=_LOAD_TIMEOUT_S)
            except InferenceServerException as error:
                raise map_error(error, ModelName(entry, "")) from error

    def require_ready(self, version: str, n_features: int) -> None:
        """Raise PublishError unless all entries serve `version` with our input and output."""
        for entry in ENTRIES:
            model = ModelName(entry, version)
            if not self._scorer.is_ready(model):
                raise PublishError(
                    f"Triton at {self._url} loaded {entry}, but its version {version} is not "
                    f"ready. Does it run on this model repository?"
                )
            self._scorer.check_shape(model, n_features)

    def scores(
        self, entry: str, version: str, rows: npt.NDArray[np.float32]
    ) -> npt.NDArray[np.float32]:
        """Return the server's scores of float32 [n, F] rows, float32 [n].

        Raises:
            PublishError: It answered with an error.
        """
        model = ModelName(entry, version)
        try:
            answers: list[Any] = [
                self._scorer.score(rows[start : start + _ROWS_PER_REQUEST], model)
                for start in range(0, len(rows), _ROWS_PER_REQUEST)
            ]
        except ModelError as error:
            raise PublishError(f"The new version does not score: {error}") from error
        return np.concatenate(answers)

    def contributions(self, version: str, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Return the contributions of float32 [n, F] rows, float32 [n, F + 1].

        Raises:
            PublishError: The explaining entry answered with an error.
        """
        model = ModelName(EXPLAIN_ENTRY, version)
        answers = []
        try:
            for start in range(0, len(rows), MAX_EXPLAINED_ROWS):
                part = rows[start : start + MAX_EXPLAINED_ROWS]
                pending = self._scorer.explain(part, model, _SCORE_TIMEOUT_MS)
                answers.append(pending.result(_SCORE_TIMEOUT_MS / 1000 + 1))
        except ModelError as error:
            raise PublishError(f"The new version does not explain: {error}") from error
        return np.concatenate(answers)

    def close(self) -> None:
        """Close the channels."""
        self._scorer.close()
        self._client.close()
