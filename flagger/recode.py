"""Feature rows of one version in the category codes of another."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagger.errors import ConfigurationError
from flagger.features import CATEGORY_FIELDS, FeatureContract
from flagger.features.hashing import key_of

__all__ = ["CategoryCodes", "recode", "require_same_rows"]


class CategoryCodes:
    """Writes one contract's category codes into rows that were computed for another.

    Nothing else in a row depends on the vocabularies.
    """

    def __init__(self, contract: FeatureContract) -> None:
        self._tables = []
        for place, field in enumerate(CATEGORY_FIELDS):
            keys = np.array([key_of(word) for word in contract.vocabularies[field]], np.uint64)
            order = np.argsort(keys)
            column = contract.names.index(f"{field}_code")
            codes = (order + 1).astype(np.float32)
            self._tables.append((place, column, keys[order], codes))

    def written(
        self, rows: npt.NDArray[np.float32], category_keys: npt.NDArray[np.uint64]
    ) -> npt.NDArray[np.float32]:
        """Return a copy of float32 [n, F] rows with this contract's codes.

        Args:
            rows: Feature rows of any contract with the same columns and label delay.
            category_keys: Keys of `CATEGORY_FIELDS`, uint64 [n, 4]; 0 is absent.
        """
        recoded = rows.copy()
        for place, column, keys, codes in self._tables:
            if not len(keys):
                recoded[:, column] = 0
                continue
            found = np.minimum(np.searchsorted(keys, category_keys[:, place]), len(keys) - 1)
            known = keys[found] == category_keys[:, place]
            recoded[:, column] = np.where(known, codes[found], np.float32(0))
        return recoded


def recode(
    rows: npt.NDArray[np.float32], old: FeatureContract, new: FeatureContract
) -> npt.NDArray[np.float32]:
    """Return feature rows, float32 [n, F], in another contract's codes, where only codes are known.

    Words that the new vocabulary lacks become 0, unknown; a word that only the new one knows was
    unknown before, and stays so.
    """
    recoded = rows.copy()
    for field in CATEGORY_FIELDS:
        words = {word: code for code, word in enumerate(new.vocabularies[field], start=1)}
        codes = np.array([0, *(words.get(w, 0) for w in old.vocabularies[field])], dtype=np.float32)
        column = old.names.index(f"{field}_code")
        recoded[:, column] = codes[rows[:, column].astype(np.intp)]
    return recoded


def require_same_rows(live: FeatureContract, candidate: FeatureContract, version: str) -> None:
    """Raise ConfigurationError if a candidate's rows are not the live version's, save for codes."""
    if candidate.label_delay_days != live.label_delay_days:
        raise ConfigurationError(
            f"Version {version} learned with a label delay of {candidate.label_delay_days} days, "
            f"the live one with {live.label_delay_days}: they see other features, so one cannot "
            f"be tried beside the other. Train it with the same delay, or publish it."
        )
