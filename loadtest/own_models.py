"""A model repository of a benchmark's own, which may publish and set thresholds in it."""

from __future__ import annotations

import shutil
from pathlib import Path

from flagger.feature_sample import SAMPLE_FILE
from flagger.models import live_version, load_version, version_folder
from flagger.training_files import bind_files

__all__ = ["copy_repository", "training_of_live"]

_DOCUMENTS = ("contract.json", "policy.json", "metrics.json", SAMPLE_FILE)


def copy_repository(repository: Path, folder: Path) -> Path:
    """Copy a model repository with a live version over what is in the folder; return the folder.

    Raises:
        ConfigurationError: It has no usable live version.
    """
    load_version(repository, live_version(repository))
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(repository, folder)


def training_of_live(repository: Path, folder: Path) -> Path:
    """Write the live version as the training that it came from, ready to be published again.

    Args:
        repository: The model repository.
        folder: Where the training is written; replaced.

    Returns:
        The folder, as `export.publish.export_model` takes it.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    version = version_folder(repository, live_version(repository))
    shutil.copyfile(version / "xgboost.json", folder / "model.json")
    for name in _DOCUMENTS:
        if (version / name).exists():  # a training may have left no sample
            shutil.copyfile(version / name, folder / name)
    bind_files(folder)  # the exported trees are another text than those of the training
    return folder
