"""A real schema registry for the tests of Avro and Protobuf."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from confluent_kafka.schema_registry import SchemaRegistryClient

from deploy.local.registry import registry_home, start_registry
from flagger.errors import StackError


def pytest_collection_finish(session: pytest.Session) -> None:
    """Fetch the registry before the time limit of a test runs."""
    if not session.config.option.collectonly and any(
        "registry_url" in getattr(item, "fixturenames", ()) for item in session.items
    ):
        with contextlib.suppress(StackError):  # the fixture says it, in the test that needs it
            registry_home()


@pytest.fixture(scope="session")
def registry_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return the address of a registry that runs for the whole session; subjects are the tests'."""
    server, url = start_registry(tmp_path_factory.mktemp("registry"))
    yield url
    server.stop()


@pytest.fixture
def client(registry_url: str) -> Iterator[SchemaRegistryClient]:
    with SchemaRegistryClient({"url": registry_url}) as made:
        yield made
