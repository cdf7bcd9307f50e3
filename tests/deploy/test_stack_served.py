"""The three real services as the stack starts them, asked the way the doors ask them."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import psutil
import pytest
import tritonclient.grpc as triton
import valkey
import xgboost
from confluent_kafka import Message, Producer
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic, ResourceType
from tritonclient.utils import InferenceServerException

from deploy.local.stack import LocalStack
from flagger.errors import StackError
from tests.deploy.conftest import COLUMNS, Rows, WriteEntry, config_text, random_rows

pytestmark = pytest.mark.stack
OUTPUT, SHAP = "output__0", "treeshap_output"


class Model:
    """One model of the running Triton."""

    def __init__(self, client: Any, name: str) -> None:
        self.client = client
        self.name = name

    def ask(self, rows: Rows, output: str = OUTPUT) -> Any:
        tensor = triton.InferInput("input__0", list(rows.shape), "FP32")
        tensor.set_data_from_numpy(rows)
        return self.client.infer(self.name, [tensor]).as_numpy(output)


ServeTrees = Callable[[dict[str, int]], Model]


@pytest.fixture(scope="module")
def client(stack: LocalStack) -> Iterator[Any]:
    opened = triton.InferenceServerClient(stack.addresses.triton_url)
    yield opened
    opened.close()


@pytest.fixture
def serve(stack: LocalStack, client: Any) -> Iterator[Callable[[Path], Model]]:
    """Return a function that loads an entry of the repository; all are taken away at the end."""
    entries: list[Path] = []

    def load(entry: Path) -> Model:
        entries.append(entry)
        client.load_model(entry.name)
        return Model(client, entry.name)

    yield load
    for entry in entries:
        client.unload_model(entry.name)
        shutil.rmtree(entry)


@pytest.fixture
def name() -> str:
    return f"tiny_{uuid.uuid4().hex}"


@pytest.fixture
def serve_trees(
    stack: LocalStack,
    serve: Callable[[Path], Model],
    write_fil: WriteEntry,
    booster: Any,
    name: str,
) -> ServeTrees:
    """Return a function that has FIL serve the tiny trees with these outputs."""
    return lambda outputs: serve(write_fil(stack.model_repository, name, booster, outputs))


def test_fil_answers_as_xgboost_does(serve_trees: ServeTrees, booster: Any) -> None:
    model = serve_trees({OUTPUT: 1})
    rows = random_rows(500)
    rows[0] = np.nan
    answer = model.ask(rows)
    assert answer.shape == (500,)
    np.testing.assert_allclose(answer, booster.inplace_predict(rows), atol=1e-7)


def test_fil_explains_and_answers_two_columns(serve_trees: ServeTrees, booster: Any) -> None:
    model = serve_trees({OUTPUT: 2, SHAP: COLUMNS + 1})
    rows = random_rows(20)
    rows[3, 1] = np.inf
    scores, shap = model.ask(rows), model.ask(rows, SHAP)
    np.testing.assert_allclose(scores[:, 1], booster.inplace_predict(rows), atol=1e-7)
    np.testing.assert_allclose(scores.sum(axis=1), 1, atol=1e-6)
    assert shap.shape == (20, COLUMNS + 1)
    rows[3, 1] = 1e30  # XGBoost itself explains no infinity
    expected = booster.predict(xgboost.DMatrix(rows), pred_contribs=True)
    np.testing.assert_allclose(shap, expected, atol=1e-6)


def test_requests_at_the_same_time_get_their_own_answers(
    serve_trees: ServeTrees, booster: Any
) -> None:
    model = serve_trees({OUTPUT: 1})
    parts = [random_rows(1 + n % 17, seed=n) for n in range(200)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(model.ask, parts))
    for part, answer in zip(parts, answers, strict=True):
        np.testing.assert_allclose(answer, booster.inplace_predict(part), atol=1e-7)


def test_onnx_answers_in_the_graphs_own_shape(
    stack: LocalStack, serve: Callable[[Path], Model], graph: Any, name: str
) -> None:
    entry = stack.model_repository / name
    (entry / "1").mkdir(parents=True)
    onnx.save(graph, entry / "1" / "model.onnx")
    threads = {"intra_op_thread_count": "1", "inter_op_thread_count": "1"}
    text = config_text(name, "onnxruntime", {OUTPUT: 1}, threads)
    (entry / "config.pbtxt").write_text(text)
    rows = np.ones((6, COLUMNS), dtype=np.float32)
    np.testing.assert_array_equal(serve(entry).ask(rows), np.full((6, 1), COLUMNS))


def test_rows_of_the_wrong_width_are_refused(
    serve_trees: ServeTrees,
) -> None:
    model = serve_trees({OUTPUT: 1})
    with pytest.raises(InferenceServerException, match="unexpected shape"):
        model.ask(random_rows(2, columns=COLUMNS - 1))


def test_a_model_that_the_real_backend_refuses_does_not_load(
    stack: LocalStack, client: Any, write_fil: WriteEntry, booster: Any, name: str
) -> None:
    entry = write_fil(stack.model_repository, name, booster, {OUTPUT: 1}, predict_proba="True")
    try:
        with pytest.raises(InferenceServerException, match="predict_proba must be true or false"):
            client.load_model(name)
        assert not client.is_model_ready(name)
        assert client.is_server_live()
    finally:
        shutil.rmtree(entry)


def test_a_start_on_a_model_that_does_not_load_says_which_and_why(
    tmp_path: Path, write_fil: WriteEntry, booster: Any
) -> None:
    repository = tmp_path / "models"
    write_fil(repository, "good", booster, {OUTPUT: 1})
    write_fil(repository, "bad", booster, {OUTPUT: 1}, threshold="half")
    stack = LocalStack(
        tmp_path / "home", model_repository=repository, services=frozenset({"triton"})
    )
    text = r"could not load bad version 1: .*threshold must be a number, not 'half'"
    with pytest.raises(StackError, match=text):
        stack.start()
    assert stack.pids == {}


def produce(address: str, topic: str, value: bytes, **options: Any) -> list[str | None]:
    """Send one message; return its error, None if it arrived."""
    errors: list[str | None] = []

    def delivered(error: Any, _: Message) -> None:
        errors.append(None if error is None else error.name())

    producer = Producer({"bootstrap.servers": address, "message.max.bytes": 10_000_000} | options)
    if "transactional.id" in options:
        producer.init_transactions(30)
        producer.begin_transaction()
    producer.produce(topic, value, callback=delivered)
    if "transactional.id" in options:
        producer.commit_transaction(30)
    producer.flush(30)
    return errors


def test_kafka_takes_large_messages_in_transactions(stack: LocalStack) -> None:
    address = stack.addresses.kafka_bootstrap_servers
    topic = f"large-{uuid.uuid4().hex}"
    admin = AdminClient({"bootstrap.servers": address})
    admin.create_topics([NewTopic(topic, 2)])[topic].result(30)
    errors = produce(address, topic, os.urandom(1_500_000), **{"transactional.id": topic})
    assert errors == [None]
    described = admin.list_topics(timeout=10).topics
    assert len(described["__transaction_state"].partitions) == 1
    assert len(described[topic].partitions) == 2
    admin.delete_topics([topic])[topic].result(30)


def test_kafka_makes_no_topic_by_itself(stack: LocalStack) -> None:
    topic = f"typo-{uuid.uuid4().hex}"
    address = stack.addresses.kafka_bootstrap_servers
    quick = {"topic.metadata.propagation.max.ms": 100}
    assert produce(address, topic, b"x", **quick) == ["UNKNOWN_TOPIC_OR_PART"]
    admin = AdminClient({"bootstrap.servers": address})
    assert topic not in admin.list_topics(timeout=10).topics


def test_kafka_keeps_what_is_written(stack: LocalStack) -> None:
    admin = AdminClient({"bootstrap.servers": stack.addresses.kafka_bootstrap_servers})
    broker = ConfigResource(ResourceType.BROKER, "1")
    values = admin.describe_configs([broker])[broker].result(30)
    assert values["log.retention.ms"].value == "-1"
    assert values["offsets.topic.num.partitions"].value == "1"


def test_valkey_keeps_nothing_on_disk(stack: LocalStack) -> None:
    store: Any = valkey.Valkey.from_url(stack.addresses.valkey_url)
    assert store.config_get("save") == {"save": ""}
    assert store.config_get("appendonly") == {"appendonly": "no"}
    store.close()


def test_everything_listens_on_the_loopback_address_only(stack: LocalStack) -> None:
    for pid in stack.pids.values():
        listening = [
            connection.laddr.ip
            for connection in psutil.Process(pid).net_connections("inet")
            if connection.status == psutil.CONN_LISTEN
        ]
        assert listening
        assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
