"""Doors import the core, never each other; the core imports no door and no web framework."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOORS = {"train", "export", "streamer", "gateway", "review", "loadtest", "deploy", "grafana"}
FRAMEWORKS = {"fastapi", "starlette", "uvicorn", "confluent_kafka", "streamlit"}
# Who may import whom beside the core: training replays nothing of the others; the benchmarks and
# the demo drive everything.
ALLOWED = {
    "flagger": set[str](),
    "train": set[str](),
    "export": set[str](),
    "streamer": {"train"},  # the producer replays files through train's readers
    "gateway": set[str](),
    "review": set[str](),
    # A backup holds the case store; a first start on one machine makes a key and a user.
    "deploy": {"review", "gateway"},
    "grafana": set[str](),
    "loadtest": DOORS,
}


def imported_modules(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_imports_point_the_right_way(package: str) -> None:
    forbidden = DOORS - ALLOWED[package] - {package}
    if package == "flagger":
        forbidden |= FRAMEWORKS
    files = list((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        wrong = imported_modules(path) & forbidden
        assert not wrong, f"{path.relative_to(ROOT)} imports {sorted(wrong)}"
