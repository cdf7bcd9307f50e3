"""The rival's model server: one transaction per HTTP request, as one row of a pandas DataFrame.

Not a part of the product: the "before" that `flagger bench rival` measures. FastAPI and XGBoost,
with what can be had for free: the handler runs on the event loop without a thread pool, and the
booster predicts on one thread without a DMatrix. `flagger loadtest --ask in-process` asks it for
rows that are numbers already, without pandas.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import pandas as pd
import uvicorn
import xgboost
from fastapi import FastAPI
from pydantic import BaseModel

__all__ = ["RowRequest", "ScoreRequest", "create_app"]


class ScoreRequest(BaseModel):
    """A ready-made feature row; None where a value is missing."""

    features: dict[str, float | None]


class RowRequest(BaseModel):
    """A ready-made feature row, its columns in the contract's order."""

    row: list[float]


def create_app(model_file: Path) -> FastAPI:
    """Return the service for one model; `model_file` is the repository's `xgboost.json`."""
    booster = xgboost.Booster(model_file=model_file)
    booster.set_param({"nthread": 1})
    app = FastAPI()

    @app.get("/ready")
    async def ready() -> None:
        return None

    @app.post("/score")
    async def score(request: ScoreRequest) -> dict[str, float]:
        row = pd.DataFrame([request.features], dtype="float32")
        # The normalised file has no feature names; the columns are in the contract's order.
        return {"score": float(booster.inplace_predict(row, validate_features=False)[0])}

    @app.post("/score-row")
    async def score_row(request: RowRequest) -> dict[str, float]:
        row = np.array([request.row], dtype=np.float32)
        return {"score": float(booster.inplace_predict(row, validate_features=False)[0])}

    return app


@click.command()
@click.argument("model_file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--port", type=int, required=True)
def main(model_file: Path, port: int) -> None:
    """Serve MODEL_FILE on 127.0.0.1."""
    uvicorn.run(create_app(model_file), host="127.0.0.1", port=port, access_log=False)


if __name__ == "__main__":
    main()
