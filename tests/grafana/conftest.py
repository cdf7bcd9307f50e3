"""Prometheus's own programs and files, and a world that they watch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.local.stack import LocalStack
from grafana.binaries import find_binary
from loadtest.monitoring_world import MonitoringWorld

PROMETHEUS = Path(__file__).parents[2] / "grafana" / "prometheus"


@pytest.fixture(scope="session")
def prometheus_files() -> Path:
    """Return the folder of Prometheus's configuration and rules."""
    return PROMETHEUS


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Return promtool; its absence fails the test with what to install."""
    return find_binary("promtool")


@pytest.fixture(scope="module")
def monitoring(
    stack: LocalStack, prometheus_files: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[MonitoringWorld]:
    """All services, Prometheus and Alertmanager at work."""
    metrics_url, folder = stack.addresses.triton_metrics_url, tmp_path_factory.mktemp("monitoring")
    with MonitoringWorld(stack.settings(), metrics_url, prometheus_files, folder) as world:
        yield world
