"""Which Triton releases refuse which file of a model repository, and why; as data and as checks.

The table is of the releases' own sources (treelite's pin in each release branch of the FIL backend)
and of load tests with those treelite versions. It knows the files that people bring: XGBoost JSON
and UBJ, treelite checkpoints, ONNX, and the keys of config.pbtxt that decide on loading.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2

from export.onnx_graph import IR_VERSION
from flagger.errors import ConfigurationError

__all__ = ["RELEASES", "Finding", "examine"]

RELEASES = tuple(
    f"{year}.{month:02d}"
    for year, first, last in ((24, 3, 12), (25, 1, 12), (26, 1, 6))
    for month in range(first, last + 1)
)
"""The container releases that the table covers, oldest first."""

_FILE_OF_TYPE = {
    "xgboost_json": "xgboost.json",
    "xgboost_ubj": "xgboost.ubj",
    "xgboost": "xgboost.model",
    "treelite_checkpoint": "checkpoint.tl",
}
_FLAGS = ("predict_proba", "output_class", "is_classifier", "use_experimental_optimizations")


@dataclass(frozen=True)
class Finding:
    """One thing that releases refuse or answer wrong (`refused`), or that is worth knowing.

    Attributes:
        file: Path in the repository.
        releases: The releases it concerns, oldest first.
        refused: False: it works, with a drawback.
        why: One sentence: the cause and the remedy.
    """

    file: str
    releases: tuple[str, ...]
    refused: bool
    why: str


def until(release: str) -> tuple[str, ...]:
    """Return the releases up to this one."""
    return RELEASES[: RELEASES.index(release) + 1]


def since(release: str) -> tuple[str, ...]:
    """Return the releases from this one on."""
    return RELEASES[RELEASES.index(release) :]


_Rule = tuple[str, tuple[str, ...], str]
XGBOOST_RULES: dict[str, _Rule] = {
    "vector_base_score": (
        "base_score is a vector",
        until("25.12"),
        "XGBoost 3.1 and later write base_score as a vector, which treelite before 4.6 cannot "
        "read; `flagger export` writes it as one number",
    ),
    "cats": (
        "a `cats` block",
        until("25.12"),
        "XGBoost 3.1 and later write a `cats` block, which treelite before 4.6 does not know; "
        "`flagger export` leaves it out",
    ),
    "encoder": (
        "an encoder of categories",
        RELEASES,
        "its `cats` block holds an encoder (it was trained on a pandas category column), which "
        "treelite refuses on purpose; train with category codes as numbers",
    ),
    "ubj": (
        "UBJ",
        until("24.09"),
        "the backend has no xgboost_ubj before 24.10; write JSON",
    ),
}
"""What an XGBoost file may have -> what it is, who refuses it, why."""


def examine(repository: Path) -> list[Finding]:
    """Return what the table knows about every model entry of a repository, in order of the files.

    Raises:
        ConfigurationError: The repository has no model entry, or a config that is not one.
    """
    configs = sorted(repository.glob("*/config.pbtxt"))
    if not configs:
        raise ConfigurationError(
            f"{repository} has no model entry (no */config.pbtxt). Is it a Triton model repository?"
        )
    findings: list[Finding] = []
    for path in configs:
        config = _parse(path)
        name = path.relative_to(repository).as_posix()
        findings += [Finding(name, *found) for found in _config_findings(config)]
        for version in sorted(p for p in path.parent.iterdir() if p.name.isdecimal()):
            findings += _version_findings(repository, config, version)
    return findings


def _parse(path: Path) -> Any:
    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    except (text_format.ParseError, OSError, ValueError) as error:
        raise ConfigurationError(
            f"{path} is not a model configuration: {error}. Run `flagger export` again."
        ) from error


def _config_findings(config: Any) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    policies = [config.dynamic_batching.default_queue_policy]
    policies += config.dynamic_batching.priority_queue_policy.values()
    if config.dynamic_batching.priority_levels or any(p.ByteSize() for p in policies):
        yield (
            RELEASES,
            False,
            "queue policies and priority levels make requests wait for the next one or half a "
            "second, and may stall the model (issue 8870); leave them out",
        )
    if config.platform == "onnxruntime_onnx" and not config.backend:
        yield RELEASES, False, "platform asks for the C++ backend; write backend: onnxruntime"
    if config.backend == "fil":
        yield from _fil_findings(config)


def _fil_findings(config: Any) -> Iterator[tuple[tuple[str, ...], bool, str]]:
    given = {key: value.string_value for key, value in config.parameters.items()}
    outputs = {output.name: list(output.dims) for output in config.output}
    for flag in _FLAGS:
        if given.get(flag, "true") not in ("true", "false"):
            yield RELEASES, True, f"{flag} is {given[flag]!r}; the backend reads true or false only"
    if "output_class" not in given:
        yield until("25.08"), True, "output_class is missing; add it beside is_classifier"
    if given.get("output_class", given.get("is_classifier")) == "true":
        if "threshold" not in given:
            yield RELEASES, True, "threshold is missing, which every classifier must have"
        if given.get("predict_proba") == "true" and outputs.get("output__0") == [1]:
            yield (
                until("25.08"),
                True,
                "predict_proba with dims [1] answers 1 - p, or other rows' numbers; use dims [2]",
            )
    if "treeshap_output" in outputs and given.get("transfer_threshold", "0") != "0":
        yield (
            RELEASES,
            True,
            "treeshap_output with transfer_threshold: small batches on a GPU get no explanation",
        )


def _version_findings(repository: Path, config: Any, folder: Path) -> Iterator[Finding]:
    if config.backend == "fil":
        kind = config.parameters["model_type"].string_value or "xgboost"
        name = config.default_model_filename or _FILE_OF_TYPE.get(kind)
        examiner = {"xgboost_json": _json_traits, "xgboost_ubj": _ubj_traits}.get(kind)
        if name is None:
            return
        yield from _file_findings(repository, folder / name, examiner)
    elif config.backend == "onnxruntime" or config.platform == "onnxruntime_onnx":
        path = folder / (config.default_model_filename or "model.onnx")
        yield from _onnx_findings(repository, path)


def _file_findings(
    repository: Path, path: Path, examiner: Callable[[Path], set[str]] | None
) -> Iterator[Finding]:
    name = path.relative_to(repository).as_posix()
    if not path.is_file():
        yield Finding(name, RELEASES, True, "the file is missing, or model_type names another one")
        return
    try:
        traits = examiner(path) if examiner else set()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        yield Finding(name, RELEASES, True, f"it cannot be read as what model_type says ({error})")
        return
    for trait, (_, releases, why) in XGBOOST_RULES.items():
        if trait in traits:
            yield Finding(name, releases, True, why)


def _json_traits(path: Path) -> set[str]:
    learner = json.loads(path.read_text(encoding="utf-8"))["learner"]
    traits = set()
    if str(learner["learner_model_param"]["base_score"]).startswith("["):
        traits.add("vector_base_score")
    cats = learner["gradient_booster"].get("model", {}).get("cats")
    if cats is not None:
        traits.add("encoder" if cats.get("enc") else "cats")
    return traits


def _ubj_traits(path: Path) -> set[str]:
    content = path.read_bytes()
    if not content.startswith(b"{"):
        raise ValueError("no UBJ object")
    traits = {"ubj"}
    if re.search(rb"base_scoreS.{1,9}?\[", content, re.DOTALL):
        traits.add("vector_base_score")
    return traits


def _onnx_findings(repository: Path, path: Path) -> Iterator[Finding]:
    name = path.relative_to(repository).as_posix()
    if not path.is_file():
        yield Finding(name, RELEASES, True, "the file is missing")
        return
    try:
        found = onnx.load(path).ir_version
    except Exception as error:  # protobuf's errors have no common type in onnx's interface
        yield Finding(name, RELEASES, True, f"it is not an ONNX model ({error})")
        return
    if found > IR_VERSION:
        yield Finding(
            name,
            RELEASES,
            False,
            f"its IR version is {found}; older releases may not know it. `flagger export` writes "
            f"{IR_VERSION}, which all of them read",
        )
