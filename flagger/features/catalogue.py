"""The feature catalogue: each feature is a declaration, its name follows from it.

A feature is (entity, aggregate, value, window). The catalogue's order is the order of the model's
input columns; `catalogue_hash` covers names, order, windows and engine version, and travels with
every model.

Windows. A window of a customer feature ends with the bucket that holds the transaction (so far)
and starts at a bucket's start: `1h` is 12 buckets of five minutes, `24h` 24 hours, `7d`, `14d` and
`30d` calendar days in UTC. The current transaction itself is never part of its own history.
Terminal windows end at the last half-day bucket that is complete `label_delay` before the
transaction, because only by then its labels are known. `profile` is the customer's history older
than 14 days: not yet touched by a fraud that is going on now.

NaN means "cannot be known": no history, no transactions in the window, a spread of zero.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Literal

from flagger.features.batch import CATEGORY_FIELDS

__all__ = ["CATALOGUE", "ENGINE_VERSION", "FEATURE_NAMES", "Feature", "catalogue_hash"]

ENGINE_VERSION = 1
"""Raised whenever the kernels compute something else under the same declarations."""

Entity = Literal["transaction", "customer", "terminal"]


@dataclass(frozen=True)
class Feature:
    """One declared feature.

    Attributes:
        entity: Whose history it describes.
        aggregate: What is computed; see `kernels` for the formula of each.
        value: What it is computed of: `amount`, a categorical field, `terminal`, or empty.
        window: `1h`, `24h`, `7d`, `14d`, `30d`, `profile`, or empty for all history.
    """

    entity: Entity
    aggregate: str
    value: str = ""
    window: str = ""

    @property
    def name(self) -> str:
        """The column's name, for example `customer_amount_sum_24h`."""
        entity = "" if self.entity == "transaction" else self.entity
        return "_".join(part for part in (entity, self.value, self.aggregate, self.window) if part)


def _declare() -> tuple[Feature, ...]:
    features = [
        Feature("transaction", "amount"),
        Feature("transaction", "hour_of_day"),
        Feature("transaction", "is_night"),
        Feature("transaction", "is_weekend"),
    ]
    features += [Feature("transaction", "code", field) for field in CATEGORY_FIELDS]
    for window in ("1h", "24h", "7d", "30d"):
        features.append(Feature("customer", "count", window=window))
        features.append(Feature("customer", "sum", "amount", window))
    for window in ("7d", "30d"):
        features.append(Feature("customer", "mean", "amount", window))
        features.append(Feature("customer", "max", "amount", window))
    features += [
        Feature("customer", "ratio_to_mean", "amount", window)
        for window in ("24h", "7d", "30d", "profile")
    ]
    features += [
        Feature("customer", "ratio_to_max", "amount", window) for window in ("30d", "profile")
    ]
    features += [
        Feature("customer", "max_to_profile_max", "amount", window) for window in ("7d", "14d")
    ]
    features += [
        Feature("customer", "mean_to_profile_mean", "amount", window) for window in ("7d", "14d")
    ]
    features += [
        Feature("customer", "zscore", "amount"),
        Feature("customer", "rate_to_30d", window="1h"),
        Feature("customer", "rate_to_30d", window="24h"),
        Feature("customer", "seconds_since_last"),
        Feature("customer", "days_since_first"),
        Feature("customer", "count"),
        Feature("customer", "hour_share"),
    ]
    features += [Feature("customer", "is_new", field) for field in (*CATEGORY_FIELDS, "terminal")]
    features.append(Feature("customer", "visits", "terminal"))
    for window in ("1d", "7d", "30d"):
        features.append(Feature("terminal", "count", window=window))
        features.append(Feature("terminal", "fraud_count", window=window))
        features.append(Feature("terminal", "fraud_share", window=window))
    features += [
        Feature("terminal", "days_since_first_fraud"),
        Feature("terminal", "days_since_last_fraud"),
    ]
    return tuple(features)


CATALOGUE: tuple[Feature, ...] = _declare()
FEATURE_NAMES: tuple[str, ...] = tuple(feature.name for feature in CATALOGUE)


def catalogue_hash(catalogue: tuple[Feature, ...] = CATALOGUE) -> str:
    """Return 16 hex digits that change whenever a column's name, place or meaning changes."""
    declared = [[f.entity, f.aggregate, f.value, f.window] for f in catalogue]
    text = json.dumps([ENGINE_VERSION, declared], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
