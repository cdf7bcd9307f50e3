"""The boards, one module each; `all_boards` makes them."""

from __future__ import annotations

from typing import Any

from grafana.boards import desk, latency, live_flags, model_health, system

__all__ = ["all_boards"]


def all_boards() -> dict[str, Any]:
    """Return file name without ending -> built dashboard."""
    return {
        "live-flags": live_flags.board(),
        "latency": latency.board(),
        "model-health": model_health.board(),
        "system": system.board(),
        "desk": desk.board(),
    }
