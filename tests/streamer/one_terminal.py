"""One terminal's counts on their way to the store, and what is there afterwards."""

from __future__ import annotations

from contextlib import closing

import numpy as np

from flagger.features import CATEGORY_FIELDS, ActivityBatch, FeatureContract
from flagger.settings import Settings
from flagger.state.store import StateStore

CONTRACT = FeatureContract({name: () for name in CATEGORY_FIELDS})
TERMINAL = np.array([77], dtype=np.uint64)


def activity(count: int) -> ActivityBatch:
    return ActivityBatch(TERMINAL, np.array([40_000], np.int32), np.array([count], np.uint32))


def stored_count(url: str) -> int:
    with closing(StateStore(url)) as store:
        return int(store.read("terminal", TERMINAL)["counts"].sum())


def stored_marks(url: str) -> dict[str, int]:
    with closing(StateStore(url)) as store:
        return store.read_marks(f"{Settings().consumer_group}:side-logs")
