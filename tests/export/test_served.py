"""Publishing to the real Triton server: proven through it, beside what it serves, or undone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton

from deploy.local.stack import LocalStack
from export import publish
from export.layout import place
from export.normalise import normalise, scores_of
from export.parity import boundary_rows
from export.publish import export_model
from flagger.errors import FlaggerError, PublishError
from flagger.features import FEATURE_NAMES
from flagger.models import ENTRIES, list_versions, live_version
from flagger.triton import ModelName, Scorer

pytestmark = pytest.mark.stack

ROWS = 10_000
PER_REQUEST = 2_000


@dataclass(frozen=True)
class Served:
    """A running Triton and its repository; version 1 is the small model of `training_dir`."""

    repository: Path
    url: str

    def scores(self, entry: str, version: str, rows: Any) -> npt.NDArray[np.float32]:
        scorer = Scorer(self.url, timeout_ms=30_000)
        parts = [rows[i : i + PER_REQUEST] for i in range(0, len(rows), PER_REQUEST)]
        try:
            return np.concatenate([scorer.score(p, ModelName(entry, version)) for p in parts])
        finally:
            scorer.close()

    def is_ready(self, entry: str, version: str) -> bool:
        scorer = Scorer(self.url, timeout_ms=30_000)
        try:
            return scorer.is_ready(ModelName(entry, version))
        finally:
            scorer.close()

    def answered(self, entry: str, version: str) -> int:
        """Return how many requests this load of the version has answered."""
        client = triton.InferenceServerClient(self.url)
        try:
            found = client.get_inference_statistics(entry, version).model_stats[0]
            return int(found.inference_stats.success.count)
        finally:
            client.close()


@pytest.fixture(scope="module")
def served(training_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A Triton of its own: other tests must not see the versions that come and go here."""
    folder = tmp_path_factory.mktemp("served")
    repository = folder / "model_repository"
    export_model(training_dir, repository, n_parity_rows=500)
    services = frozenset({"triton"})
    with LocalStack(folder / "home", model_repository=repository, services=services) as stack:
        yield Served(repository, stack.addresses.triton_url)


@dataclass
class Tally:
    """What steady requests met so far."""

    rounds: int
    errors: list[str]


@contextmanager
def steady_requests(served: Served, version: str) -> Iterator[Tally]:
    """Score with `version` once in each entry per round, without a pause between rounds."""
    tally = Tally(rounds=0, errors=[])
    started, stop = threading.Event(), threading.Event()
    rows = np.zeros((8, len(FEATURE_NAMES)), dtype=np.float32)

    def ask() -> None:
        scorer = Scorer(served.url, timeout_ms=10_000)
        while not stop.is_set():
            for entry in ENTRIES:
                try:
                    scorer.score(rows, ModelName(entry, version))
                except FlaggerError as error:
                    tally.errors.append(str(error))
            tally.rounds += 1
            started.set()
        scorer.close()

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        assert started.wait(timeout=20)
        yield tally
    finally:
        stop.set()
        thread.join()


def test_ten_thousand_rows_agree_through_the_server_for_an_early_stopped_model(
    served: Served, early_stopped: Any, write_training: Callable[..., Path], tmp_path: Path
) -> None:
    steps: list[str] = []
    version = export_model(
        write_training(tmp_path / "training", early_stopped),
        served.repository,
        triton_url=served.url,
        n_parity_rows=ROWS,
        progress=steps.append,
    )

    for entry in ENTRIES:
        assert any(f"Triton's {entry} version {version} agrees on 10,000" in s for s in steps)
    model = normalise(tmp_path / "training" / "model.json", FEATURE_NAMES)
    rows = boundary_rows(model, ROWS, seed=99)  # not the rows of the proof itself
    expected = scores_of(model.booster, rows)
    assert np.ptp(expected) > 0.5
    for entry in ENTRIES:
        found = served.scores(entry, version, rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_served_version_answers_all_along_and_is_not_loaded_again(
    served: Served, training_dir: Path
) -> None:
    live = live_version(served.repository)
    before = {entry: served.answered(entry, live) for entry in ENTRIES}
    with steady_requests(served, live) as tally:
        version = export_model(
            training_dir, served.repository, triton_url=served.url, n_parity_rows=500, keep=9
        )
    assert tally.errors == []
    assert live_version(served.repository) == version != live
    for entry in ENTRIES:
        # A version that is loaded again counts from zero again.
        assert served.answered(entry, live) == before[entry] + tally.rounds
        assert served.is_ready(entry, version)


Damage = Callable[[Path], None]


def wrong_scores(version_folder: Path) -> None:
    path = version_folder / "xgboost.json"
    document = json.loads(path.read_text())
    document["learner"]["learner_model_param"]["base_score"] = "0.9"
    path.write_text(json.dumps(document))


def unreadable_graph(version_folder: Path) -> None:
    onnx = version_folder.parents[1] / "fraud_onnx" / version_folder.name / "model.onnx"
    onnx.write_bytes(b"no graph")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (wrong_scores, r"fraud_fil version \d+ does not answer as the trained booster"),
        (unreadable_graph, "did not load fraud_onnx"),
    ],
)
def test_a_version_that_the_server_cannot_serve_is_taken_away_again(
    served: Served,
    training_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Damage,
    said: str,
) -> None:
    def place_damaged(
        repository: Path, version: str, contents: Mapping[str, Any], facts: Mapping[str, Any]
    ) -> None:
        place(repository, version, contents, facts)
        damage(repository / "fraud_fil" / version)

    live, before = live_version(served.repository), list_versions(served.repository)
    monkeypatch.setattr(publish, "place", place_damaged)
    with (
        steady_requests(served, live) as tally,
        pytest.raises(PublishError, match=said),
    ):
        export_model(training_dir, served.repository, triton_url=served.url, n_parity_rows=500)

    assert tally.errors == []
    assert live_version(served.repository) == live
    assert list_versions(served.repository) == before
    for entry in ENTRIES:
        assert served.is_ready(entry, live)
        assert not served.is_ready(entry, str(int(before[-1]) + 1))


def test_versions_that_are_removed_leave_the_server_too(served: Served, training_dir: Path) -> None:
    old = list_versions(served.repository)[0]
    assert served.is_ready("fraud_fil", old)
    for _ in range(2):
        export_model(
            training_dir, served.repository, triton_url=served.url, n_parity_rows=100, keep=2
        )
    assert old not in list_versions(served.repository)
    for entry in ENTRIES:
        assert not served.is_ready(entry, old)
        assert served.is_ready(entry, live_version(served.repository))
