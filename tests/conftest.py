"""The embedded stack for tests that are marked `stack`: started once, on first use."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.downloads import kafka_jars, triton_environment
from deploy.local.stack import LocalStack
from flagger.errors import StackError

MODEL_REPOSITORY = Path(__file__).parents[1] / "model_repository"


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch what the stack needs before the time limit of a test runs."""
    if session.config.option.collectonly:
        return
    if any(item.get_closest_marker("stack") for item in session.items):
        with contextlib.suppress(StackError):  # the fixture says it, in the test that needs it
            kafka_jars()
            triton_environment()


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalStack]:
    """Kafka, Triton and Valkey, on a copy of the model repository that tests may change."""
    folder = tmp_path_factory.mktemp("stack")
    repository = folder / "model_repository"
    if MODEL_REPOSITORY.is_dir():
        shutil.copytree(MODEL_REPOSITORY, repository)
    repository.mkdir(exist_ok=True)
    with LocalStack(folder / "home", model_repository=repository) as running:
        yield running
