"""Prometheus's own programs, and what is written in its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from grafana.binaries import find_binary

PROMETHEUS = Path(__file__).parents[2] / "grafana" / "prometheus"


@pytest.fixture(scope="session")
def prometheus_files() -> Path:
    """Return the folder of Prometheus's configuration and rules."""
    return PROMETHEUS


@pytest.fixture(scope="session")
def promtool() -> Path:
    """Return promtool; its absence fails the test with what to install."""
    return find_binary("promtool")
