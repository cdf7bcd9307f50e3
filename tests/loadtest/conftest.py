"""What the benchmarks' tests share."""

from __future__ import annotations

import pytest

from deploy.local.stack import LocalStack
from flagger.settings import Settings


@pytest.fixture
def servers(stack: LocalStack) -> Settings:
    """Addresses of the shared Kafka and Triton; a benchmark starts a Valkey of its own."""
    return stack.settings().model_copy(update={"valkey_url": None})
