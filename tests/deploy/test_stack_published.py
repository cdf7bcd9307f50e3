"""A published model on the stack, and a stack that is started again."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as triton
import xgboost
from confluent_kafka.admin import AdminClient, NewTopic

from deploy.local.stack import LocalStack
from flagger.errors import ModelRefusedError
from flagger.features import FEATURE_NAMES
from flagger.models import ENTRIES, FIL_ENTRY, ONNX_ENTRY, live_version, load_version
from flagger.triton import ModelName, Scorer
from flagger.triton_tensors import INPUT, OUTPUT
from tests.deploy.conftest import Rows, random_rows

pytestmark = pytest.mark.stack
RESTART_S = 30.0
"""A start takes some 5 s when all is there; on a busy machine more."""
DELAY_US = 300_000
"""Requests that come within this time are run together."""
NOBODY = "http://127.0.0.1:9"


@pytest.fixture
def scorer(stack: LocalStack) -> Iterator[Scorer]:
    opened = Scorer(stack.addresses.triton_url, timeout_ms=20_000)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def trained(published: tuple[Path, str]) -> Any:
    repository, version = published
    return xgboost.Booster(model_file=repository / FIL_ENTRY / version / "xgboost.json")


def rows_of(n: int, seed: int) -> Rows:
    return random_rows(n, seed=seed, columns=len(FEATURE_NAMES))


def test_both_entries_are_ready_and_live(published: tuple[Path, str], scorer: Scorer) -> None:
    repository, version = published
    assert live_version(repository) == version
    assert load_version(repository, version).manifest["parity"]
    for entry in ENTRIES:
        assert scorer.is_ready(ModelName(entry, version))
        scorer.check_shape(ModelName(entry, version), len(FEATURE_NAMES))


@pytest.fixture
def patient(stack: LocalStack, published: tuple[Path, str], entry: str) -> Iterator[ModelName]:
    """The published entry under another name; its server waits for requests to run together."""
    repository, version = published
    name = f"patient_{entry}"
    shutil.copytree(repository / entry, repository / name)
    config = repository / name / "config.pbtxt"
    text = config.read_text().replace(f'name: "{entry}"', f'name: "{name}"')
    delay = "max_queue_delay_microseconds"
    assert f"{delay}: 0" in text
    config.write_text(text.replace(f"{delay}: 0", f"{delay}: {DELAY_US}"))
    with triton.InferenceServerClient(stack.addresses.triton_url) as client:
        client.load_model(name)
        yield ModelName(name, version)
        client.unload_model(name)
    shutil.rmtree(repository / name)


def executions(stack: LocalStack, model: ModelName) -> int:
    with triton.InferenceServerClient(stack.addresses.triton_url) as client:
        found = client.get_inference_statistics(model.name, model.version)
        return int(found.model_stats[0].execution_count)


@pytest.mark.parametrize("entry", [FIL_ENTRY, ONNX_ENTRY])
def test_requests_that_are_run_together_get_their_own_scores(
    stack: LocalStack, patient: ModelName, scorer: Scorer, trained: Any
) -> None:
    parts = [rows_of(1 + i % 5, seed=i) for i in range(60)]
    before = executions(stack, patient)
    pending = [scorer.submit(part, patient) for part in parts]
    answers = [one.result(20.0) for one in pending]
    for part, answer in zip(parts, answers, strict=True):
        assert answer.shape == (len(part),)
        np.testing.assert_allclose(answer, trained.inplace_predict(part), rtol=0, atol=1e-5)
    assert executions(stack, patient) - before < len(parts) / 4


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_request_with_too_few_columns_fails_alone(
    published: tuple[Path, str], scorer: Scorer, trained: Any, entry: str
) -> None:
    model = ModelName(entry, published[1])
    good, bad = rows_of(4, seed=1), rows_of(4, seed=2)[:, :-1].copy()
    pending = [scorer.submit(bad if i % 10 == 5 else good, model) for i in range(60)]
    expected = trained.inplace_predict(good)
    for i, one in enumerate(pending):
        if i % 10 == 5:
            with pytest.raises(ModelRefusedError, match=INPUT):
                one.result(20.0)
        else:
            np.testing.assert_allclose(one.result(20.0), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("entry", ENTRIES)
def test_both_entries_answer_both_classes(
    stack: LocalStack, published: tuple[Path, str], entry: str
) -> None:
    rows = rows_of(3, seed=4)
    tensor = triton.InferInput(INPUT, list(rows.shape), "FP32")
    tensor.set_data_from_numpy(rows)
    with triton.InferenceServerClient(stack.addresses.triton_url) as client:
        answer = client.infer(entry, [tensor], model_version=published[1]).as_numpy(OUTPUT)
    assert answer.shape == (3, 2)
    np.testing.assert_allclose(answer.sum(axis=1), 1.0, atol=1e-6)


def test_a_second_start_is_quick_keeps_the_topics_and_needs_no_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, NOBODY)
        monkeypatch.setenv(name.lower(), NOBODY)
    stack = LocalStack(
        tmp_path / "home",
        model_repository=tmp_path / "models",
        services=frozenset({"kafka", "triton"}),
    )
    with stack:
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
        admin.create_topics([NewTopic("kept", 3)])["kept"].result(30)
        del admin
    assert stack.pids == {}
    stack.stop()
    begun_s = time.monotonic()
    with stack:
        assert time.monotonic() - begun_s < RESTART_S
        admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
        assert len(admin.list_topics("kept", timeout=10).topics["kept"].partitions) == 3
        del admin
