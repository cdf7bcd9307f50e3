"""The options of `make chaos`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--kills", type=int, default=100, help="processes to kill")
    group.addoption("--seed", type=int, default=None, help="of an earlier run's plan")
    group.addoption("--gateway-kills", type=int, default=40, help="the same, under gateways")
