"""The HTTP routes: one table of path, method, what answers and what the documentation says."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from gateway import openapi
from gateway.routes_data import decision, feedback, models, refresh_models
from gateway.routes_ops import healthz, metrics, readyz
from gateway.routes_score import SCORE_PATH, score, score_batch

__all__ = ["ROUTES", "Route"]

Route = tuple[str, str, Callable[[Request], Awaitable[Response]], dict[str, Any]]

ROUTES: tuple[Route, ...] = (
    ("POST", SCORE_PATH, score, openapi.SCORE),
    ("POST", "/v1/score/batch", score_batch, openapi.BATCH),
    ("GET", "/v1/decisions/{transaction_id:path}", decision, openapi.DECISION),
    ("POST", "/v1/feedback", feedback, openapi.FEEDBACK),
    ("GET", "/v1/models", models, openapi.MODELS),
    ("POST", "/v1/models/refresh", refresh_models, openapi.REFRESH),
    ("GET", "/healthz", healthz, openapi.HEALTHZ),
    ("GET", "/readyz", readyz, openapi.READYZ),
    ("GET", "/metrics", metrics, openapi.METRICS),
)
"""Everything the gateway answers; `openapi.json` is made of it."""
