"""Scores rows with the treelite of this environment, as Triton's FIL backend does on a CPU.

Run by test_treelite.py in an environment of its own, one per treelite release:
`python treelite_check.py xgboost.json rows.npy scores.npy`. Imports nothing of this project.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import treelite


def load(path: str) -> Any:
    """Read an XGBoost JSON file; releases before 4.2 have another name for it."""
    if hasattr(treelite, "frontend") and hasattr(treelite.frontend, "load_xgboost_model"):
        return treelite.frontend.load_xgboost_model(path)
    return treelite.Model.load(path, "xgboost_json")


def main() -> None:
    """Read the model and the rows, write float32 [n] scores."""
    model_file, rows_file, scores_file = sys.argv[1:]
    rows = np.load(rows_file)
    scores = treelite.gtil.predict(load(model_file), rows, nthread=1)
    np.save(scores_file, np.asarray(scores, dtype=np.float32).reshape(len(rows)))


if __name__ == "__main__":
    main()
