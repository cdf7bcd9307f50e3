"""Boards to JSON files: generated, committed, and compared by a test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from grafana_foundation_sdk.cog.encoder import JSONEncoder

from grafana.boards import all_boards

__all__ = ["DASHBOARDS", "generate", "rendered"]

DASHBOARDS = Path(__file__).with_name("dashboards")
"""The committed files, which `provisioning/dashboards` hands to Grafana."""


def rendered() -> dict[str, str]:
    """Return file name -> JSON text of each board; sorted keys keep a change's diff small."""
    return {
        f"{name}.json": json.dumps(board, cls=JSONEncoder, indent=2, sort_keys=True) + "\n"
        for name, board in all_boards().items()
    }


def boards_as_objects() -> dict[str, dict[str, Any]]:
    """Return file name -> board as Grafana's API takes it."""
    return {name: json.loads(text) for name, text in rendered().items()}


def generate(folder: Path = DASHBOARDS) -> list[Path]:
    """Write the boards to a folder, remove boards that are no more, return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    texts = rendered()
    for stale in folder.glob("*.json"):
        if stale.name not in texts:
            stale.unlink()
    written = []
    for name, text in texts.items():
        path = folder / name
        path.write_text(text)
        written.append(path)
    return written
