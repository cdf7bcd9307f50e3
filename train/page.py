"""Reports that stand alone: a page from a template, with its pictures inside."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any

import jinja2
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

__all__ = ["embedded", "new_figure", "png", "render"]


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches, that needs no screen and belongs to nobody else."""
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def png(figure: Figure, *, dpi: int) -> bytes:
    """Return a figure as PNG."""
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=dpi)
    return image.getvalue()


def embedded(picture: bytes) -> str:
    """Return a picture in base64, for a data URL."""
    return base64.b64encode(picture).decode()


def render(template: Path, **values: Any) -> str:
    """Return a page; a value that the template names and that is not given is an error."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
    )
    return environment.get_template(template.name).render(values)
