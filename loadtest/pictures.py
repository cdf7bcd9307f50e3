"""Plots as pictures inside a page."""

from __future__ import annotations

import base64
import io
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

__all__ = ["embedded", "plt", "png"]


def png(figure: Any) -> bytes:
    """Return a figure as PNG, and close it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    plt.close(figure)
    return buffer.getvalue()


def embedded(figure: Any) -> str:
    """Return a figure as PNG in base64, for a data URL, and close it."""
    return base64.b64encode(png(figure)).decode()
