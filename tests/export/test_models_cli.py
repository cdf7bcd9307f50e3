"""`flagger models` and `flagger policy` as they are typed, on versions of real trainings."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from export import comparison
from export.cli import export
from export.models_cli import models
from export.policy_cli import policy
from export.publish import export_model
from flagger.errors import ConfigurationError, FlaggerError, PublishError
from flagger.models import file_sha256, live_version, load_version
from flagger.pointer import read_audit
from flagger.training_files import BOUND_FILES, bind_files


@pytest.fixture(scope="module")
def two_versions(small_training: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of one training; the second's thresholds differ, and it is live."""
    folder = tmp_path_factory.mktemp("models")
    other = Path(shutil.copytree(small_training, folder / "training"))
    thresholds = json.loads((other / "policy.json").read_text())
    (other / "policy.json").write_text(json.dumps(thresholds | {"review_threshold": 1e-4}))
    bind_files(other)
    for training in (small_training, other):
        export_model(training, folder / "model_repository", n_parity_rows=50, why="test")
    return folder / "model_repository"


@pytest.fixture
def repository(two_versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("TRITON_URL", "VALKEY_URL", "KAFKA_BOOTSTRAP_SERVERS"):
        monkeypatch.delenv(f"FLAGGER_{name}", raising=False)
    monkeypatch.chdir(tmp_path)  # away from an embedded stack that may run in this folder
    copied = Path(shutil.copytree(two_versions, tmp_path / "model_repository"))
    monkeypatch.setenv("FLAGGER_MODEL_REPOSITORY", str(copied))
    return copied


def run(command: Any, *arguments: str) -> Result:
    return CliRunner().invoke(command, arguments, catch_exceptions=False)


def test_the_list_has_a_star_at_the_live_version(repository: Path) -> None:
    lines = run(models, "list").output.splitlines()
    assert [line[:1] for line in lines] == [" ", " ", "*"]
    assert "live" in lines[2]


def test_a_damaged_version_is_listed_as_refused_with_exit_code_1(repository: Path) -> None:
    (repository / "fraud_fil" / "1" / "policy.json").write_text("{}")
    result = run(models, "list")
    assert result.exit_code == 1
    assert "refused" in result.output
    assert "was changed after it was published" in result.output


def test_show_has_what_an_auditor_asks(repository: Path) -> None:
    output = run(models, "show").output
    for word in (
        "git revision",
        "learned from",
        "judged on",
        "contract",
        "checksums",
        "test roc_auc",
        "publish",
    ):
        assert word in output
    assert run(models, "show", "1").output.startswith("version            1\n")


def test_show_tells_only_of_changes_that_concern_the_version(repository: Path) -> None:
    """A version's name may be a digit of another one's thresholds."""
    run(policy, "set", "--review", "0.12", "--decline", "0.9", "--why", "two more analysts")
    assert "two more analysts" in run(models, "show", "2").output
    assert "two more analysts" not in run(models, "show", "1").output
    run(policy, "set", "--version", "1", "--review", "0.2", "--why", "to be ready")
    assert "to be ready" in run(models, "show", "1").output
    assert "to be ready" not in run(models, "show", "2").output
    run(models, "canary", "1", "--share", "0.1", "--why", "a tenth of them")
    assert "a tenth of them" in run(models, "show", "1").output


def test_a_repository_without_versions_says_so(repository: Path, tmp_path: Path) -> None:
    result = run(models, "list", "--repository", str(tmp_path / "other"))
    assert "has no model version; publish one with `flagger export`" in result.output


def test_more_alerts_than_transactions_are_refused(repository: Path) -> None:
    with pytest.raises(ConfigurationError, match="would flag every transaction"):
        run(policy, "set", "--alerts-per-day", "100000000")


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("policy.json", "{}"),
        ("policy.json", "no"),
        ("contract.json", "{}"),
        ("metrics.json", "[]"),
        ("metrics.json", "no"),
        ("metrics.json", "{}"),
        ("metrics.json", '{"windows": {}, "test": {"pr_auc": 0.5}}'),
    ],
)
def test_a_training_with_a_damaged_document_names_file_and_remedy(
    repository: Path, small_training: Path, tmp_path: Path, file: str, text: str
) -> None:
    training = Path(shutil.copytree(small_training, tmp_path / "training"))
    (training / file).write_text(text)
    with pytest.raises(PublishError, match="Run `flagger train` again") as error:
        run(export, str(training))
    assert str(training / file) in str(error.value)
    assert live_version(repository) == "2"


@pytest.mark.parametrize("value", ["NaN", "1e999"])
def test_measures_that_are_no_numbers_are_refused(
    repository: Path, small_training: Path, tmp_path: Path, value: str
) -> None:
    training = Path(shutil.copytree(small_training, tmp_path / "training"))
    path = training / "metrics.json"
    path.write_text(path.read_text().replace('"roc_auc": 0', f'"roc_auc": {value}, "was": 0'))
    with pytest.raises(PublishError, match=f"{value} is no number in JSON"):
        run(export, str(training))
    assert live_version(repository) == "2"


@pytest.mark.parametrize("name", BOUND_FILES)
def test_files_of_two_trainings_are_not_mixed(
    repository: Path, small_training: Path, tmp_path: Path, name: str
) -> None:
    """A training that was interrupted while it replaced another's files leaves such a folder."""
    training = Path(shutil.copytree(small_training, tmp_path / "training"))
    (training / name).write_bytes((training / name).read_bytes() + b" ")
    with pytest.raises(PublishError, match=f"^{name} in .*are of different trainings"):
        run(export, str(training))
    assert live_version(repository) == "2"


def test_a_training_that_does_not_name_its_files_is_refused(
    repository: Path, small_training: Path, tmp_path: Path
) -> None:
    training = Path(shutil.copytree(small_training, tmp_path / "training"))
    metrics = json.loads((training / "metrics.json").read_text())
    del metrics["files"]
    (training / "metrics.json").write_text(json.dumps(metrics))
    with pytest.raises(PublishError, match="does not say which files belong to it"):
        run(export, str(training))


def test_publish_and_roll_back_move_the_pointer(repository: Path) -> None:
    assert run(models, "publish", "1", "--why", "better").output == "version 1 is live\n"
    assert live_version(repository) == "1"
    assert run(models, "publish", "2").exit_code == 0
    assert run(models, "rollback", "--why", "worse").output == "version 1 is live again\n"
    assert [(r["action"], r["why"]) for r in read_audit(repository)][-3:] == [
        ("publish", "better"),
        ("publish", ""),
        ("rollback", "worse"),
    ]
    with pytest.raises(ConfigurationError, match="no model version '9'"):
        run(models, "publish", "9")


def test_a_tampered_version_is_not_published(repository: Path) -> None:
    path = repository / "fraud_fil_explain" / "1" / "xgboost.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(ConfigurationError, match="was changed after it was published"):
        run(models, "publish", "1")
    assert live_version(repository) == "2"


def test_a_version_that_triton_does_not_serve_is_not_published(repository: Path) -> None:
    with pytest.raises(FlaggerError, match=r"127\.0\.0\.1:9"):
        run(models, "publish", "1", "--triton", "127.0.0.1:9")
    assert live_version(repository) == "2"


def test_a_candidate_does_not_move_the_pointer(repository: Path, small_training: Path) -> None:
    result = run(export, str(small_training), "--candidate", "--parity-rows", "50")
    assert "version 3 is a candidate" in result.output
    assert live_version(repository) == "2"
    run(models, "publish", "3")
    assert live_version(repository) == "3"


def test_compare_tells_agreement_on_real_rows(repository: Path) -> None:
    output = run(models, "compare", "1", "2").output
    assert "test roc_auc" in output
    assert "score correlation 1.0000, largest difference 0.0000" in output
    assert "same decision for" in output
    assert "same decision for 100.00%" not in output  # the thresholds differ
    assert "same decision for 100.00%" in run(models, "compare", "1", "1").output


def test_measures_that_are_no_numbers_are_told_as_such(repository: Path) -> None:
    """An earlier release let them pass."""
    path = repository / "fraud_fil" / "1" / "metrics.json"
    path.write_text('{"test": {"roc_auc": NaN}}')
    manifest = repository / "fraud_fil" / "1" / "manifest.json"
    document = json.loads(manifest.read_text())
    document["artefacts"]["fraud_fil/1/metrics.json"] = file_sha256(path)
    manifest.write_text(json.dumps(document))
    for command in (["show", "1"], ["compare", "1", "2"]):
        with pytest.raises(ConfigurationError, match=r"NaN is no number in JSON.*Train and export"):
            run(models, *command)


def test_scores_that_never_change_have_no_correlation(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comparison, "recode", lambda rows, *_: np.zeros_like(rows))
    assert "score correlation none, " in run(models, "compare", "1", "2").output


def test_the_doctor_is_content_with_our_exports_and_names_what_is_not(repository: Path) -> None:
    result = run(models, "doctor")
    assert result.exit_code == 0
    assert "24.03 to 26.06" in result.output
    config = repository / "fraud_fil" / "config.pbtxt"
    config.write_text(config.read_text().replace("dims: [ 2 ]", "dims: [ 1 ]"))
    result = run(models, "doctor")
    assert result.exit_code == 1
    assert "fraud_fil/config.pbtxt: refused, or answered wrong, by 24.03 to 25.08" in result.output
    assert run(models, "doctor", "--release", "26.01").exit_code == 0
    with pytest.raises(ConfigurationError, match=r"24\.03 to 26\.06"):
        run(models, "doctor", "--release", "23.01")


def test_thresholds_are_set_shown_and_taken_back(repository: Path) -> None:
    before = load_version(repository, "2").policy
    output = run(policy, "set", "--review", "0.2", "--decline", "0.95", "--why", "w", "--by", "ann")
    assert "policy 1.1: review from 0.200000, decline from 0.950000" in output.output
    assert load_version(repository, "2").policy.review_threshold == 0.2
    shown = run(policy, "show").output
    assert "ann: policy set, 1 (" in shown
    assert "-> 1.1 (0.2000 / 0.9500)  w" in shown
    run(policy, "rollback")
    assert load_version(repository, "2").policy == before


def test_what_is_not_given_stays(repository: Path) -> None:
    before = load_version(repository, "2").policy
    run(policy, "set", "--decline", "0.99")
    assert load_version(repository, "2").policy.review_threshold == before.review_threshold
    assert load_version(repository, "2").policy.decline_threshold == 0.99


@pytest.mark.parametrize("option", ["--alert-budget", "--alerts-per-day"])
def test_a_budget_is_kept_on_the_test_window(
    repository: Path, small_training: Path, option: str
) -> None:
    table = pq.read_table(small_training / "scores.parquet")
    scores = table["score"].to_numpy()
    days = len({stamp.date() for stamp in table["event_time"].to_pylist()})
    share = 0.05
    value = share if option == "--alert-budget" else share * len(scores) / days
    output = run(policy, "set", option, str(value)).output
    assert "of the test window" in output
    threshold = np.float32(load_version(repository, "2").policy.review_threshold)
    flagged = float((scores >= threshold).mean())
    assert 0.8 * share <= flagged <= share


def test_a_precision_is_reached_on_the_test_window(repository: Path, small_training: Path) -> None:
    table = pq.read_table(small_training / "scores.parquet")
    scores, is_fraud = table["score"].to_numpy(), table["is_fraud"].to_numpy(zero_copy_only=False)
    best = is_fraud[np.argsort(-scores)[:100]].mean()
    assert best > is_fraud.mean()
    run(policy, "set", "--decline-precision", str(0.9 * best))
    declined = scores >= np.float32(load_version(repository, "2").policy.decline_threshold)
    assert declined.sum() >= 100
    assert is_fraud[declined].mean() >= 0.9 * best


def test_a_budget_without_a_table_says_what_to_do(repository: Path) -> None:
    manifest = repository / "fraud_fil" / "2" / "manifest.json"
    document = json.loads(manifest.read_text())
    del document["artefacts"]["fraud_fil/2/thresholds.json"]
    manifest.write_text(json.dumps(document))
    (repository / "fraud_fil" / "2" / "thresholds.json").unlink()
    with pytest.raises(ConfigurationError, match="--review and --decline"):
        run(policy, "set", "--alert-budget", "0.01")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--review", "0.1", "--alert-budget", "0.1"],
        ["--decline", "0.1", "--decline-precision", "0.1"],
    ],
)
def test_one_way_to_say_each_threshold(repository: Path, arguments: list[str]) -> None:
    assert run(policy, "set", *arguments).exit_code == 2
    assert not any(r["action"].startswith("policy") for r in read_audit(repository))


def test_codes_beyond_the_vocabulary_are_refused(
    repository: Path, small_training: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(small_training, tmp_path / "bad"))
    contract = json.loads((bad / "contract.json").read_text())
    kept = contract["vocabularies"]["merchant_category"]
    contract["vocabularies"]["merchant_category"] = kept[:1]
    (bad / "contract.json").write_text(json.dumps(contract))
    bind_files(bad)
    with pytest.raises(FlaggerError, match="merchant_category_code"):
        export_model(bad, repository, n_parity_rows=50)
    (bad / "contract.json").write_text((small_training / "contract.json").read_text())
    table = pq.read_table(bad / "feature_sample.parquet")
    place = table.column_names.index("channel_code")
    wrong = pa.array(np.full(len(table), 99, dtype=np.float32))
    pq.write_table(table.set_column(place, "channel_code", wrong), bad / "feature_sample.parquet")
    bind_files(bad)
    with pytest.raises(FlaggerError, match="channel_code is 99"):
        export_model(bad, repository, n_parity_rows=50)
    assert live_version(repository) == "2"
