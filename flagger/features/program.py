"""The catalogue as numbers: what the kernels interpret for each column."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from flagger.features.batch import CATEGORY_FIELDS
from flagger.features.catalogue import CATALOGUE, Feature
from flagger.features.contract import FeatureContract
from flagger.features.hashing import key_of

__all__ = ["CUSTOMER_WINDOWS", "TERMINAL_WINDOW_DAYS", "Op", "Program", "compile_program"]

CUSTOMER_WINDOWS = ("1h", "24h", "7d", "14d", "30d", "profile")
TERMINAL_WINDOW_DAYS = (1, 7, 30)


class Op(IntEnum):
    """Operation codes of the feature kernels."""

    AMOUNT = 0
    HOUR_OF_DAY = 1
    IS_NIGHT = 2
    IS_WEEKEND = 3
    CODE = 4
    COUNT = 5
    SUM = 6
    MEAN = 7
    MAX = 8
    RATIO_TO_MEAN = 9
    RATIO_TO_MAX = 10
    MAX_TO_PROFILE_MAX = 11
    MEAN_TO_PROFILE_MEAN = 12
    ZSCORE = 13
    RATE_TO_30D = 14
    SECONDS_SINCE_LAST = 15
    DAYS_SINCE_FIRST = 16
    COUNT_ALL = 17
    HOUR_SHARE = 18
    IS_NEW = 19
    VISITS = 20
    TERMINAL_COUNT = 21
    TERMINAL_FRAUD_COUNT = 22
    TERMINAL_FRAUD_SHARE = 23
    TERMINAL_DAYS_SINCE_FIRST_FRAUD = 24
    TERMINAL_DAYS_SINCE_LAST_FRAUD = 25


@dataclass(frozen=True, slots=True)
class Program:
    """What the kernels need to know of a contract.

    Attributes:
        ops: `Op` per column, int32 [F].
        arguments: Window or field number per column, int32 [F].
        vocabulary_keys: Keys of all categories, sorted within each field, uint64 [V].
        vocabulary_codes: Code of each, float32 [V].
        vocabulary_starts: Field i has `[starts[i], starts[i + 1])`, int32 [5].
        label_delay_ms: Milliseconds until a terminal's fraud is known.
    """

    ops: npt.NDArray[np.int32]
    arguments: npt.NDArray[np.int32]
    vocabulary_keys: npt.NDArray[np.uint64]
    vocabulary_codes: npt.NDArray[np.float32]
    vocabulary_starts: npt.NDArray[np.int32]
    label_delay_ms: int


def _instruction(feature: Feature) -> tuple[Op, int]:
    if feature.aggregate == "code":
        return Op.CODE, CATEGORY_FIELDS.index(feature.value)
    if feature.entity == "terminal":
        op = Op[f"TERMINAL_{feature.aggregate.upper()}"]
        days = feature.window.removesuffix("d")
        return op, TERMINAL_WINDOW_DAYS.index(int(days)) if days else 0
    if feature.aggregate == "count" and not feature.window:
        return Op.COUNT_ALL, 0
    op = Op[feature.aggregate.upper()]
    if op is Op.IS_NEW:
        fields = (*CATEGORY_FIELDS, "terminal")
        return op, fields.index(feature.value)
    return op, CUSTOMER_WINDOWS.index(feature.window) if feature.window else 0


def compile_program(contract: FeatureContract) -> Program:
    """Translate the catalogue and a contract's vocabularies for the kernels."""
    instructions = [_instruction(feature) for feature in CATALOGUE]
    keys: list[int] = []
    codes: list[float] = []
    starts = [0]
    for name in CATEGORY_FIELDS:
        words = sorted((key_of(word), i + 1) for i, word in enumerate(contract.vocabularies[name]))
        keys += [key for key, _ in words]
        codes += [float(code) for _, code in words]
        starts.append(len(keys))
    return Program(
        ops=np.array([op for op, _ in instructions], dtype=np.int32),
        arguments=np.array([argument for _, argument in instructions], dtype=np.int32),
        vocabulary_keys=np.array(keys, dtype=np.uint64),
        vocabulary_codes=np.array(codes, dtype=np.float32),
        vocabulary_starts=np.array(starts, dtype=np.int32),
        label_delay_ms=contract.label_delay_ms,
    )
