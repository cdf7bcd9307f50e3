"""The committed model repository is servable as it is; `make reference-model` makes it again."""

from __future__ import annotations

from pathlib import Path

from flagger.features import FEATURE_NAMES
from flagger.models import ENTRIES, live_version, load_version, version_folder

REPOSITORY = Path(__file__).parents[2] / "model_repository"


def test_the_committed_model_is_whole_and_of_this_code() -> None:
    version = live_version(REPOSITORY)
    model = load_version(REPOSITORY, version)  # checksums and feature contract
    assert model.contract.names == FEATURE_NAMES
    assert model.manifest["parity"]["model.onnx"]["max_abs_difference"] <= 1e-5
    for entry in ENTRIES:
        assert version_folder(REPOSITORY, version, entry).is_dir()
        assert (
            f"dims: [ {len(FEATURE_NAMES)} ]" in (REPOSITORY / entry / "config.pbtxt").read_text()
        )
