"""The feature contract: what a model must know about its input columns, and travels with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from flagger.errors import ConfigurationError, ContractMismatchError
from flagger.features.batch import CATEGORY_FIELDS
from flagger.features.catalogue import FEATURE_NAMES, catalogue_hash

__all__ = ["MAX_VOCABULARY", "FeatureContract"]

MAX_VOCABULARY = 1_000
"""Most categories per field: the rest of a field's values are `unknown`."""


@dataclass(frozen=True)
class FeatureContract:
    """Columns, category codes and label delay of one model.

    Attributes:
        vocabularies: Per categorical field its known values; `vocabulary[i]` has the code i + 1,
            and code 0 stands for absent values and for values not seen in training.
        label_delay_days: Days until fraud at a terminal is known, whole, at least 0.
        names: Column names in order.
        hash: Hash of the catalogue that computed the training rows.
    """

    vocabularies: Mapping[str, tuple[str, ...]]
    label_delay_days: int = 7
    names: tuple[str, ...] = FEATURE_NAMES
    hash: str = field(default_factory=catalogue_hash)

    def __post_init__(self) -> None:
        if sorted(self.vocabularies) != sorted(CATEGORY_FIELDS):
            raise ConfigurationError(
                f"The feature contract has vocabularies for {sorted(self.vocabularies)}; "
                f"it needs {sorted(CATEGORY_FIELDS)}."
            )
        for name, words in self.vocabularies.items():
            if len(words) > MAX_VOCABULARY or len(set(words)) != len(words):
                raise ConfigurationError(
                    f"The vocabulary of {name} has {len(words)} entries; at most {MAX_VOCABULARY} "
                    f"distinct ones are allowed."
                )
        if not 0 <= self.label_delay_days <= 7:
            raise ConfigurationError(
                f"label_delay_days is {self.label_delay_days}; the terminal state covers 0 to 7."
            )

    @property
    def label_delay_ms(self) -> int:
        """The label delay in milliseconds."""
        return self.label_delay_days * 86_400_000

    def require_current(self, source: str) -> None:
        """Raise ContractMismatchError unless this code computes exactly these columns."""
        if self.hash != catalogue_hash():
            raise ContractMismatchError(
                model_hash=self.hash, code_hash=catalogue_hash(), source=source
            )

    def to_json(self) -> str:
        """Return the contract as indented JSON."""
        return json.dumps(
            {
                "hash": self.hash,
                "label_delay_days": self.label_delay_days,
                "names": list(self.names),
                "vocabularies": {name: list(words) for name, words in self.vocabularies.items()},
            },
            indent=2,
            ensure_ascii=False,
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read a contract; whether this code can serve it is for `require_current` to say.

        Raises:
            ConfigurationError: Not a feature contract.
        """
        try:
            data = json.loads(text)
            return cls(
                vocabularies={k: tuple(v) for k, v in data["vocabularies"].items()},
                label_delay_days=int(data["label_delay_days"]),
                names=tuple(data["names"]),
                hash=str(data["hash"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigurationError(
                f"Not a feature contract ({error!r}); export the model again to write a new one."
            ) from error
