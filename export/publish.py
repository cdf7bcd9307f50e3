"""Publishing a model: prove it, put it beside the others, then move the pointer.

The order is what makes it safe. Nothing is written before the exports agree with the booster. The
new version appears complete, by a rename. A running Triton loads it beside the versions that it
serves, and must answer alike too. Only then does the pointer move. When a step fails, the version
is taken away again and the pointer has not moved.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xgboost

from export.codes import require_known_codes
from export.configs import config_files
from export.layout import (
    next_version,
    one_export,
    place,
    remove,
    require_same_columns,
    write_configs,
)
from export.normalise import NormalisedModel, margins_of, normalise, scores_of
from export.onnx_graph import OnnxScorer, to_onnx
from export.parity import DEFAULT_ROWS, compare, compare_sums, parity_rows
from export.revision import git_revision
from export.server import ModelServer
from export.training import SAMPLE_FILE, read_training
from flagger.errors import ConfigurationError, FlaggerError
from flagger.files import exclusive
from flagger.models import (
    EXPLAIN_ENTRY,
    FIL_ENTRY,
    ONNX_ENTRY,
    list_versions,
    live_version,
    load_version,
    previous_versions,
    set_live_version,
)
from flagger.pointer import POINTER_FILE, read_pointer

__all__ = ["DEFAULT_KEEP", "export_model", "publish_version", "roll_back"]

DEFAULT_KEEP = 5
"""Newest versions that stay on disk and in Triton's memory."""

_EXPLAINED_ROWS = 500
"""Rows whose explanations must add up in a running Triton: about half a second."""

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Candidate:
    """A version before it is written: files by entry and name, manifest facts, proof rows."""

    contents: dict[str, dict[str, bytes]]
    facts: dict[str, Any]
    n_features: int
    rows: npt.NDArray[np.float32]
    expected: npt.NDArray[np.float32]
    margins: npt.NDArray[np.float32]


def export_model(
    training_dir: Path,
    repository: Path,
    *,
    triton_url: str | None = None,
    keep: int = DEFAULT_KEEP,
    n_parity_rows: int = DEFAULT_ROWS,
    cpu_instances: int = 1,
    make_live: bool = True,
    why: str = "",
    progress: Progress = lambda _: None,
) -> str:
    """Publish a trained model as a new version, make it the live one, and return its number.

    Args:
        training_dir: Output folder of `flagger train`.
        repository: Triton's model repository; made if it does not exist.
        triton_url: host:port of the gRPC endpoint of a running Triton on this repository. None: no
            server is told, and one that runs must be restarted before the doors can follow.
        keep: Newest versions that stay; older ones are removed, save the live one and the one
            that was live before it.
        n_parity_rows: Rows of the parity proof.
        cpu_instances: Executions that each scoring entry may run at once, one thread each.
        make_live: False: the version stands beside the live one as a candidate, until
            `publish_version`.
        why: The reason, for the audit.
        progress: Called with one sentence per finished step.

    Raises:
        PublishError: The model was refused; the repository is as it was.
        ConfigurationError: The contract or the policy of the training cannot be used.
    """
    candidate = _prepare(training_dir, n_parity_rows, progress)
    configs = config_files(candidate.n_features, cpu_instances=cpu_instances)
    with one_export(repository), ExitStack() as always, ExitStack() as on_failure:
        require_same_columns(repository, candidate.n_features)
        version = next_version(repository)
        server = always.enter_context(closing(ModelServer(triton_url))) if triton_url else None
        if server:
            on_failure.callback(_follow_disk, server, repository)
        on_failure.callback(write_configs, repository, write_configs(repository, configs))
        place(repository, version, candidate.contents, candidate.facts)
        on_failure.callback(remove, repository, version)
        if server:
            _prove_served(server, version, candidate, progress)
        load_version(repository, version)
        # From here on: a version without a pointer is harmless, a pointer without one is not.
        on_failure.pop_all()
        if make_live:
            set_live_version(repository, version, why=why)
        progress(f"version {version} is {'live' if make_live else 'a candidate'}")
        if not server:
            progress("no Triton was told: one that runs on this repository must be restarted")
        if (old := _prune(repository, keep)) and server:
            server.load()
        progress(f"removed old versions: {', '.join(old) or 'none'}")
    return version


def publish_version(
    repository: Path, version: str, *, triton_url: str | None = None, why: str = ""
) -> None:
    """Make a version that is in the repository the live one: a candidate, or an earlier one.

    Args:
        repository: The model repository.
        version: Its number.
        triton_url: host:port of a running Triton, which must serve it; None: nobody is asked.
        why: The reason, for the audit.

    Raises:
        ConfigurationError: No such version, its files are damaged, or of other features.
        PublishError: Triton does not serve it.
    """
    _make_live(repository, version, triton_url, action="publish", why=why)


def roll_back(repository: Path, *, triton_url: str | None = None, why: str = "") -> str:
    """Point the doors at the version that was live before; return it.

    Raises:
        ConfigurationError: There is no earlier version, or its files are damaged.
        PublishError: Triton (if given) does not serve it.
    """
    earlier = previous_versions(repository)
    if not earlier:
        raise ConfigurationError(
            f"There is no version to go back to in {repository}: {live_version(repository)} is "
            f"the first that was live, or the earlier ones were removed."
        )
    _make_live(repository, earlier[0], triton_url, action="rollback", why=why)
    return earlier[0]


def _make_live(
    repository: Path, version: str, triton_url: str | None, *, action: str, why: str
) -> None:
    model = load_version(repository, version)
    if triton_url:
        with closing(ModelServer(triton_url)) as server:
            server.require_ready(version, len(model.contract.names))
    set_live_version(repository, version, action=action, why=why)


def _prepare(training_dir: Path, n_rows: int, progress: Progress) -> _Candidate:
    """Make all files of a version in memory, and prove that they agree with the booster."""
    training = read_training(training_dir)
    model = normalise(training.model_file, training.contract.names)
    graph = to_onnx(model)
    require_known_codes(model, training.contract, training.sample_rows)
    rows = parity_rows(model, n_rows, training.sample_rows)
    expected = scores_of(model.booster, rows)
    answers = {"xgboost.json": _json_scores(model, rows), "model.onnx": OnnxScorer(graph)(rows)}
    parity = {name: compare(name, expected, scores, rows) for name, scores in answers.items()}
    for name, report in parity.items():
        progress(_agreement(name, report))
    documents = {name: text.encode() for name, text in training.documents.items()}
    if training.sample_rows is not None:
        documents[SAMPLE_FILE] = (training_dir / SAMPLE_FILE).read_bytes()
    return _Candidate(
        contents={
            FIL_ENTRY: {"xgboost.json": model.text.encode(), **documents},
            ONNX_ENTRY: {"model.onnx": graph},
            EXPLAIN_ENTRY: {"xgboost.json": model.text.encode()},
        },
        facts={
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "xgboost_version": xgboost.__version__,
            "feature_hash": training.contract.hash,
            "git_revision": git_revision(),
            "data_window": training.data_window,
            "n_features": model.n_features,
            "n_trees": model.n_trees,
            "parity": parity,
        },
        n_features=model.n_features,
        rows=rows,
        expected=expected,
        margins=margins_of(model.booster, rows),
    )


def _json_scores(model: NormalisedModel, rows: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    booster = xgboost.Booster()
    booster.load_model(bytearray(model.text.encode()))
    scores: npt.NDArray[np.float32] = booster.inplace_predict(rows, missing=np.nan)
    return scores


def _agreement(name: str, report: dict[str, Any]) -> str:
    difference = report["max_abs_difference"]
    return f"{name} agrees on {report['rows']:,} rows (largest difference {difference:.1e})"


def _prove_served(
    server: ModelServer, version: str, candidate: _Candidate, progress: Progress
) -> None:
    server.load()
    server.require_ready(version, candidate.n_features)
    for entry in (FIL_ENTRY, ONNX_ENTRY):
        name = f"Triton's {entry} version {version}"
        answered = server.scores(entry, version, candidate.rows)
        progress(_agreement(name, compare(name, candidate.expected, answered, candidate.rows)))
    rows, margins = candidate.rows[:_EXPLAINED_ROWS], candidate.margins[:_EXPLAINED_ROWS]
    name = f"Triton's {EXPLAIN_ENTRY} version {version}"
    report = compare_sums(name, margins, server.contributions(version, rows))
    progress(
        f"{name} adds up to the score on {len(rows):,} rows (largest difference "
        f"{report['max_abs_difference']:.1e})"
    )


def _follow_disk(server: ModelServer, repository: Path) -> None:
    """After a failure: make the server forget what was taken away, if it still answers."""
    with suppress(FlaggerError):  # the failure itself is the error to report
        if list_versions(repository):
            server.load()
        else:
            server.unload()


def _prune(repository: Path, keep: int) -> list[str]:
    """Remove all but the newest versions from disk, never one that a roll back would need."""
    if not (repository / POINTER_FILE).exists():  # candidates only
        return []
    with exclusive(repository):  # nobody makes one of them live or tries it meanwhile
        pointer = read_pointer(repository)
        needed = {pointer.version, *pointer.trials, *previous_versions(repository)[:1]}
        old = [version for version in list_versions(repository)[:-keep] if version not in needed]
        for version in old:
            remove(repository, version)
    return old
