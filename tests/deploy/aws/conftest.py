"""AWS's services by moto's server: real HTTP requests by boto3, answered on this machine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer

from deploy.aws import lambdas
from deploy.aws.table import table_layout
from flagger.alert import Alert

REGION = "eu-central-1"
numbers = itertools.count(1)


@pytest.fixture(scope="session")
def aws(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start the services; the environment points boto3 there, and never at AWS."""
    nothing = tmp_path_factory.mktemp("no-aws")
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        environment.setenv("AWS_ACCESS_KEY_ID", "testing")
        environment.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        environment.setenv("AWS_REGION", REGION)
        environment.setenv("AWS_DEFAULT_REGION", REGION)
        environment.setenv("AWS_CONFIG_FILE", str(nothing / "config"))
        environment.setenv("AWS_SHARED_CREDENTIALS_FILE", str(nothing / "credentials"))
        yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def table_name(aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Return a table of its own, which the functions' environment names too."""
    import boto3

    name = f"decisions-{next(numbers)}"
    client = boto3.client("dynamodb")
    client.create_table(**table_layout(name))
    monkeypatch.setenv("DECISION_TABLE", name)
    lambdas._table.cache_clear()
    lambdas._sns.cache_clear()
    yield name
    client.delete_table(TableName=name)
    client.close()


@pytest.fixture
def make_alert() -> Callable[..., Alert]:
    """Return a function that makes an alert, with changes."""

    def make(transaction_id: str = "t-1", **changes: Any) -> Alert:
        values: dict[str, Any] = {
            "transaction_id": transaction_id,
            "customer_id": "c-planted-4111111111111111",
            "event_time": 1_769_860_800_000,
            "amount": 129.95,
            "decision": "review",
            "decision_source": "model",
            "score": 0.1 + 0.2,  # not a round number: it must come back bit-equal
            "model": "fraud_fil",
            "model_version": "7",
            "policy_version": "p7",
            "reasons": ["score 0.300 reaches the review threshold", "größer als üblich"],
            "reason_codes": ["score", "amount"],
            "feature_hash": "00ff00ff00ff00ff",
            "latency_ms": 31.5,
            "terminal_id": "m-1",
            "currency": "EUR",
        }
        return Alert(**(values | changes))

    return make


@pytest.fixture
def shapes() -> Path:
    """Return the folder of event shapes from AWS's documentation."""
    return Path(__file__).parent / "events"
