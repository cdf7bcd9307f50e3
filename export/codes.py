"""Category codes that the model and its vocabulary must agree on.

A code is a place in the contract's vocabulary. A model that splits, or was trained, on codes beyond
the vocabulary's end belongs to another contract, though names and width may fit.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from export.normalise import NormalisedModel
from export.parity import thresholds_of
from flagger.errors import PublishError
from flagger.features import CATEGORY_FIELDS, FeatureContract

__all__ = ["require_known_codes"]


def require_known_codes(
    model: NormalisedModel,
    contract: FeatureContract,
    sample_rows: npt.NDArray[np.float32] | None,
) -> None:
    """Check that splits and sample rows hold codes of the vocabularies only.

    Raises:
        PublishError: A code is out of range; nothing was published.
    """
    splits = thresholds_of(model)
    for field in CATEGORY_FIELDS:
        column = contract.names.index(f"{field}_code")
        known = len(contract.vocabularies[field])
        highest = float(splits[column].max(initial=0.0))
        if highest > known:
            raise PublishError(
                f"The model splits {field}_code at {highest:g}, but contract.json knows codes 0 to "
                f"{known}: model and vocabulary are of different trainings. Take both from one "
                f"output folder of `flagger train`."
            )
        if sample_rows is None:
            continue
        codes = sample_rows[:, column]
        wrong = ~((codes >= 0) & (codes <= known) & (codes == np.floor(codes)))
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            raise PublishError(
                f"feature_sample.parquet, row {row}: {field}_code is {codes[row]:g}; contract.json "
                f"knows whole codes from 0 to {known}. Run `flagger train` again."
            )
