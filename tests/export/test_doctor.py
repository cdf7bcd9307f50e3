"""The doctor against files that real XGBoost and our own export write."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import xgboost

from export.configs import config_files
from export.doctor import RELEASES, Finding, examine, since, until
from export.publish import export_model
from flagger.errors import ConfigurationError
from flagger.features import FEATURE_NAMES


@pytest.fixture(scope="module")
def exported(training_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    repository = tmp_path_factory.mktemp("doctor") / "model_repository"
    export_model(training_dir, repository, n_parity_rows=50)
    return repository


@pytest.fixture
def repository(exported: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(exported, tmp_path / "model_repository"))


def of_file(repository: Path, name: str) -> list[Finding]:
    """Return what is found, and check that it is found in this file alone."""
    findings = examine(repository)
    assert {finding.file for finding in findings} <= {name}
    return findings


def test_what_we_export_is_refused_by_no_release(repository: Path) -> None:
    assert examine(repository) == []
    assert RELEASES[0] == "24.03"
    assert RELEASES[-1] == "26.06"
    assert len(RELEASES) == 28
    assert (*until("25.08"), *since("25.09")) == RELEASES


def test_a_json_straight_from_xgboost_needs_26_01(repository: Path, booster: Any) -> None:
    booster.save_model(repository / "fraud_fil" / "1" / "xgboost.json")
    findings = of_file(repository, "fraud_fil/1/xgboost.json")
    assert all(f.refused and f.releases == until("25.12") for f in findings)
    assert any("vector" in f.why for f in findings)


def test_a_json_of_pandas_categories_is_refused_by_all(repository: Path) -> None:
    frame = pd.DataFrame({"word": pd.Categorical(["a", "b", "c", "a"] * 10), "x": range(40)})
    matrix = xgboost.DMatrix(frame, [0, 1] * 20, enable_categorical=True)
    trained = xgboost.train({"objective": "binary:logistic"}, matrix, 2)
    trained.save_model(repository / "fraud_fil" / "1" / "xgboost.json")
    findings = of_file(repository, "fraud_fil/1/xgboost.json")
    assert any("encoder" in f.why and f.releases == RELEASES for f in findings)


def test_ubj_needs_24_10_and_its_own_model_type(repository: Path, booster: Any) -> None:
    shutil.move(
        repository / "fraud_fil" / "1" / "xgboost.json", repository / "fraud_fil" / "kept.json"
    )
    booster.save_model(repository / "fraud_fil" / "1" / "xgboost.ubj")
    (missing,) = of_file(repository, "fraud_fil/1/xgboost.json")
    assert missing.refused
    assert "missing" in missing.why
    config = repository / "fraud_fil" / "config.pbtxt"
    config.write_text(config.read_text().replace("xgboost_json", "xgboost_ubj"))
    findings = of_file(repository, "fraud_fil/1/xgboost.ubj")
    assert [f.releases[-1] for f in findings] == ["25.12", "24.09"]


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"learner": 3}', "\x00"])
def test_a_file_that_is_no_model_is_refused_by_all(repository: Path, content: str) -> None:
    (repository / "fraud_fil" / "1" / "xgboost.json").write_text(content)
    (finding,) = of_file(repository, "fraud_fil/1/xgboost.json")
    assert finding.refused
    assert finding.releases == RELEASES


@pytest.mark.parametrize(
    ("old", "new", "said", "last"),
    [
        ("dims: [ 2 ]", "dims: [ 1 ]", "1 - p", "25.08"),
        (
            'parameters { key: "output_class" value { string_value: "true" } }',
            "",
            "output_cl",
            "25.08",
        ),
        ('parameters { key: "threshold" value { string_value: "0.5" } }', "", "threshold", "26.06"),
        (
            '"predict_proba" value { string_value: "true"',
            '"predict_proba" value { string_value: "True"',
            "predict_proba is 'True'",
            "26.06",
        ),
    ],
)
def test_keys_that_decide_on_loading(
    repository: Path, old: str, new: str, said: str, last: str
) -> None:
    path = repository / "fraud_fil" / "config.pbtxt"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    (finding,) = of_file(repository, "fraud_fil/config.pbtxt")
    assert finding.refused
    assert said in finding.why
    assert finding.releases[-1] == last


def test_queue_policies_are_worth_knowing(repository: Path) -> None:
    path = repository / "fraud_onnx" / "config.pbtxt"
    path.write_text(
        path.read_text().replace("dynamic_batching {", "dynamic_batching { priority_levels: 2")
    )
    (finding,) = of_file(repository, "fraud_onnx/config.pbtxt")
    assert not finding.refused
    assert "8870" in finding.why


def test_an_onnx_file_that_is_none_is_refused(repository: Path) -> None:
    (repository / "fraud_onnx" / "1" / "model.onnx").write_bytes(b"no graph")
    (finding,) = of_file(repository, "fraud_onnx/1/model.onnx")
    assert finding.refused


def test_a_folder_that_is_no_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="no model entry"):
        examine(tmp_path)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "config.pbtxt").write_text("{{")
    with pytest.raises(ConfigurationError, match="not a model configuration"):
        examine(tmp_path)


def test_every_config_we_write_is_examined_for_both_machines(repository: Path) -> None:
    for path, text in config_files(len(FEATURE_NAMES)).items():
        (repository / path).write_text(text)
    gpu = repository / "fraud_fil" / "configs" / "gpu.pbtxt"
    (repository / "fraud_fil" / "config.pbtxt").write_text(gpu.read_text())
    assert examine(repository) == []
