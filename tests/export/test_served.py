"""Publishing to the real Triton server: proven through it, beside what it serves, or undone."""

from __future__ import annotations

import json
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np
import numpy.typing as npt
import pytest
import tritonclient.grpc as triton
import yaml

from deploy import health_cli
from deploy.local.stack import LocalStack
from export import publish
from export.layout import place
from export.normalise import normalise, scores_of
from export.parity import boundary_rows
from export.publish import export_model, publish_version, roll_back
from flagger.errors import FlaggerError, PublishError
from flagger.features import FEATURE_NAMES
from flagger.live import LiveModel
from flagger.models import (
    ENTRIES,
    EXPLAIN_ENTRY,
    FIL_ENTRY,
    ONNX_ENTRY,
    list_versions,
    live_version,
    load_version,
)
from flagger.policies import set_policy
from flagger.triton import MAX_EXPLAINED_ROWS, ModelName, Scorer

pytestmark = pytest.mark.stack

ROOT = Path(__file__).parents[2]
SCORING = (FIL_ENTRY, ONNX_ENTRY)
ROWS = 10_000
PER_REQUEST = 2_000
RATE = 1_000
"""Requests per second."""


@dataclass(frozen=True)
class Served:
    """A running Triton and its repository; version 1 is the small model of `training_dir`."""

    repository: Path
    url: str
    http_url: str

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

    def says(self, path: str) -> int:
        """Return the status of its HTTP door."""
        return httpx.get(f"http://{self.http_url}{path}", trust_env=False).status_code

    def answered(self, entry: str, version: str) -> int:
        """Return how many requests this load of the version has answered, once nothing is asked.

        A backend counts a request after it has sent the answer, so the count may still rise for
        a moment: it is asked until it stays.
        """
        client = triton.InferenceServerClient(self.url)
        try:
            counts = [-1]
            while len(counts) < 2 or counts[-1] != counts[-2]:
                time.sleep(0.05)
                found = client.get_inference_statistics(entry, version).model_stats[0]
                counts.append(int(found.inference_stats.success.count))
            return counts[-1]
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
        yield Served(repository, stack.addresses.triton_url, stack.addresses.triton_http_url)


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
            for entry in SCORING:
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

    for entry in SCORING:
        assert any(f"Triton's {entry} version {version} agrees on 10,000" in s for s in steps)
    model = normalise(tmp_path / "training" / "model.json", FEATURE_NAMES)
    rows = boundary_rows(model, ROWS, seed=99)  # not the rows of the proof itself
    expected = scores_of(model.booster, rows)
    assert np.ptp(expected) > 0.5
    assert any(f"Triton's {EXPLAIN_ENTRY} version {version} adds up" in s for s in steps)
    for entry in SCORING:
        found = served.scores(entry, version, rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_the_served_version_answers_all_along_and_is_not_loaded_again(
    served: Served, training_dir: Path
) -> None:
    live = live_version(served.repository)
    before = {entry: served.answered(entry, live) for entry in SCORING}
    with steady_requests(served, live) as tally:
        version = export_model(
            training_dir, served.repository, triton_url=served.url, n_parity_rows=500, keep=9
        )
    assert tally.errors == []
    assert live_version(served.repository) == version != live
    for entry in SCORING:
        # A version that is loaded again counts from zero again.
        assert served.answered(entry, live) == before[entry] + tally.rounds
        assert served.is_ready(entry, version)


def test_requests_that_meet_are_executed_one_after_the_other_without_a_pause(
    served: Served,
) -> None:
    """With a queue policy the third of them waited half a second; see `export.configs`."""
    model = ModelName(EXPLAIN_ENTRY, live_version(served.repository))
    rows = np.zeros((MAX_EXPLAINED_ROWS, len(FEATURE_NAMES)), dtype=np.float32)
    scorer = Scorer(served.url, timeout_ms=5_000)
    took_s = []
    for _ in range(5):
        started_s = time.monotonic()
        pending = [scorer.explain(rows, model, 5_000) for _ in range(4)]
        for one in pending:
            assert one.result(6).shape == (MAX_EXPLAINED_ROWS, len(FEATURE_NAMES) + 1)
        took_s.append(time.monotonic() - started_s)
    scorer.close()
    assert min(took_s) < 0.4


Damage = Callable[[Path], None]


def wrong_scores(version_folder: Path, entry: str = FIL_ENTRY) -> None:
    path = version_folder.parents[1] / entry / version_folder.name / "xgboost.json"
    document = json.loads(path.read_text())
    document["learner"]["learner_model_param"]["base_score"] = "0.9"
    path.write_text(json.dumps(document))


def wrong_explanations(version_folder: Path) -> None:
    wrong_scores(version_folder, EXPLAIN_ENTRY)


def unreadable_graph(version_folder: Path) -> None:
    onnx = version_folder.parents[1] / "fraud_onnx" / version_folder.name / "model.onnx"
    onnx.write_bytes(b"no graph")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (wrong_scores, r"fraud_fil version \d+ does not answer as the trained booster"),
        (wrong_explanations, r"fraud_fil_explain version \d+ explains another model"),
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


def probed_paths() -> set[str]:
    """Return what Kubernetes, Compose and `flagger health triton` ask Triton for."""
    chart = (ROOT / "tests" / "deploy" / "rendered" / "default.yaml").read_text()
    (pod,) = (
        manifest["spec"]["template"]["spec"]["containers"][0]
        for manifest in yaml.safe_load_all(chart)
        if manifest
        and manifest["metadata"]["name"].endswith("triton-cpu")
        and (manifest["kind"] == "Deployment")
    )
    by_kubernetes = {
        pod[f"{probe}Probe"]["httpGet"]["path"] for probe in ("startup", "liveness", "readiness")
    }
    compose = yaml.safe_load((ROOT / "deploy" / "compose" / "compose.yaml").read_text())
    by_compose = urlsplit(compose["services"]["triton"]["healthcheck"]["test"][-1]).path
    return by_kubernetes | {by_compose} | set(health_cli.TRITON_PATHS.values())


def test_a_refused_model_leaves_the_server_in_service(
    served: Served, training_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own readiness does not: it is why no probe may ask for it."""

    def place_damaged(*arguments: Any) -> None:
        place(*arguments)
        unreadable_graph(arguments[0] / FIL_ENTRY / arguments[1])

    monkeypatch.setattr(publish, "place", place_damaged)
    with pytest.raises(PublishError, match="did not load fraud_onnx"):
        export_model(training_dir, served.repository, triton_url=served.url, n_parity_rows=100)
    assert served.says("/v2/health/ready") == 400
    assert probed_paths() == {"/v2/health/live", f"/v2/models/{FIL_ENTRY}/ready"}
    for path in probed_paths():
        assert served.says(path) == 200, path


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


def test_publishing_and_rolling_back_under_load_fails_no_request(
    served: Served, training_dir: Path
) -> None:
    """About 1,000 single rows a second, each naming the version that is live for a door."""
    repository, stop = served.repository, threading.Event()
    door = LiveModel(repository, load_version(repository, live_version(repository)), lambda _: None)
    asked: dict[tuple[str, str], int] = {}
    errors: list[str] = []
    row = np.zeros((1, len(FEATURE_NAMES)), dtype=np.float32)

    def ask() -> None:
        scorer = Scorer(served.url, timeout_ms=10_000)
        present = load_version(repository, live_version(repository))
        under_way: deque[Any] = deque()
        started_s, sent = time.monotonic(), 0
        while not stop.is_set() or under_way:
            present = door.successor() or present
            due = int((time.monotonic() - started_s) * RATE) if not stop.is_set() else sent
            for _ in range(min(due - sent, 64 - len(under_way))):
                key = (present.version, present.policy.version)
                asked[key] = asked.get(key, 0) + 1
                under_way.append(scorer.submit(row, ModelName(FIL_ENTRY, present.version)))
                sent += 1
            while under_way and (under_way[0].done or len(under_way) >= 64 or stop.is_set()):
                try:
                    under_way.popleft().result(11)
                except FlaggerError as error:
                    errors.append(str(error))
            time.sleep(0.001)
        scorer.close()

    def await_asked(version: str, policy: str) -> None:
        """Return once doors have followed and asked this version for a while."""
        enough, deadline_s = asked.get((version, policy), 0) + RATE // 4, time.monotonic() + 60
        while asked.get((version, policy), 0) < enough:
            assert time.monotonic() < deadline_s, f"no door follows to {version}: {asked}"
            time.sleep(0.01)

    old = live_version(repository)
    thread = threading.Thread(target=ask)
    thread.start()
    try:
        await_asked(old, "p1")
        new = export_model(
            training_dir, repository, triton_url=served.url, n_parity_rows=500, keep=9
        )
        await_asked(new, "p1")
        assert roll_back(repository, triton_url=served.url) == old
        await_asked(old, "p1")
        publish_version(repository, new, triton_url=served.url)
        await_asked(new, "p1")
        set_policy(repository, 0.3, 0.7)
        await_asked(new, "p1.1")
    finally:
        stop.set()
        thread.join()
    assert errors == []
