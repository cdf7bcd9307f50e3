"""Who pays and where: the customers and terminals of the simulation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from sklearn.neighbors import KDTree

__all__ = [
    "AMOUNT_FACTORS",
    "ATM_CATEGORY",
    "CATEGORIES",
    "COUNTRIES",
    "CURRENCIES",
    "Customers",
    "Terminals",
    "make_customers",
    "make_terminals",
]

COUNTRIES = ("DE", "FR", "NL", "GB", "CH", "US", "BR", "NG")
CURRENCIES = ("EUR", "EUR", "EUR", "GBP", "CHF", "USD", "BRL", "NGN")
"""Currency of each country."""
_BORDERS_X = (40.0, 70.0, 85.0, 95.0)
"""The map is 100 x 100; the first five countries are bands of it from west to east."""
_ONLINE_COUNTRY_SHARES = (0.38, 0.22, 0.12, 0.10, 0.03, 0.12, 0.02, 0.01)

# ISO 18245 code, share of the physical terminals, share of the online ones, amount factor
_MERCHANTS = (
    ("5411", 0.28, 0.04, 0.8),  # groceries
    ("5812", 0.16, 0.00, 0.7),  # restaurants
    ("5814", 0.12, 0.08, 0.35),  # fast food
    ("5541", 0.10, 0.00, 1.1),  # service stations
    ("5912", 0.06, 0.06, 0.6),  # pharmacies
    ("5651", 0.08, 0.20, 1.4),  # clothing
    ("5732", 0.04, 0.14, 3.0),  # electronics
    ("5999", 0.05, 0.20, 1.0),  # other retail
    ("4121", 0.04, 0.05, 0.5),  # taxis
    ("7011", 0.02, 0.03, 3.5),  # hotels
    ("6011", 0.05, 0.00, 2.0),  # cash machines
    ("5816", 0.00, 0.09, 0.25),  # digital games
    ("4511", 0.00, 0.03, 5.0),  # airlines
    ("5968", 0.00, 0.06, 0.4),  # subscriptions
    ("7995", 0.00, 0.02, 1.5),  # betting
)
CATEGORIES = tuple(code for code, *_ in _MERCHANTS)
ATM_CATEGORY = CATEGORIES.index("6011")
AMOUNT_FACTORS = np.array([factor for *_, factor in _MERCHANTS])

_ONLINE_SHARE = 0.25
_REACHABLE = 40
_RADIUS = 6.0
_FAVOURITES = 8


@dataclass(frozen=True)
class Terminals:
    """T terminals.

    Attributes:
        place: Where they stand on the map, float64 [T, 2]; of no meaning for online ones.
        online: True for web shops, bool [T].
        category: Index into `CATEGORIES`, int8 [T].
        country: Index into `COUNTRIES`, int8 [T].
    """

    place: npt.NDArray[np.float64]
    online: npt.NDArray[np.bool_]
    category: npt.NDArray[np.int8]
    country: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Customers:
    """C customers.

    Attributes:
        mean_amount: Typical amount, float64 [C].
        rate_per_day: Expected transactions per day, float64 [C].
        active_hour: Centre of the day's activity, hours UTC, float64 [C].
        online_share: Share of purchases in web shops, float64 [C].
        country: Where they live, index into `COUNTRIES`, int8 [C].
        reachable: Physical terminals within the radius, nearest first, int64 [C, k].
        reachable_count: How many of them count, at least 1, int64 [C].
        favourites: Web shops they come back to, int64 [C, m].
    """

    mean_amount: npt.NDArray[np.float64]
    rate_per_day: npt.NDArray[np.float64]
    active_hour: npt.NDArray[np.float64]
    online_share: npt.NDArray[np.float64]
    country: npt.NDArray[np.int8]
    reachable: npt.NDArray[np.int64]
    reachable_count: npt.NDArray[np.int64]
    favourites: npt.NDArray[np.int64]


def _country_at(place: npt.NDArray[np.float64]) -> npt.NDArray[np.int8]:
    return np.searchsorted(_BORDERS_X, place[:, 0], side="right").astype(np.int8)


def make_terminals(n: int, rng: np.random.Generator) -> Terminals:
    """Return `n` (at least 2) terminals; the first is always physical, the last online."""
    place = rng.uniform(0.0, 100.0, (n, 2))
    online = rng.random(n) < _ONLINE_SHARE
    online[0], online[-1] = False, True
    physical_shares, online_shares = (np.array([m[i] for m in _MERCHANTS]) for i in (1, 2))
    category = np.where(
        online,
        rng.choice(len(CATEGORIES), n, p=online_shares / online_shares.sum()),
        rng.choice(len(CATEGORIES), n, p=physical_shares / physical_shares.sum()),
    ).astype(np.int8)
    elsewhere = rng.choice(len(COUNTRIES), n, p=_ONLINE_COUNTRY_SHARES).astype(np.int8)
    country = np.where(online, elsewhere, _country_at(place))
    return Terminals(place, online, category, country)


def make_customers(n: int, terminals: Terminals, rng: np.random.Generator) -> Customers:
    """Return `n` customers with the terminals that they can reach."""
    place = rng.uniform(0.0, 100.0, (n, 2))
    physical = np.flatnonzero(~terminals.online)
    tree = KDTree(terminals.place[physical])
    found: tuple[npt.NDArray[Any], npt.NDArray[Any]] = tree.query(
        place, k=min(_REACHABLE, len(physical))
    )
    distance, nearest = found
    shops = np.flatnonzero(terminals.online)
    return Customers(
        mean_amount=np.clip(rng.lognormal(np.log(35.0), 0.6, n), 5.0, 400.0),
        rate_per_day=np.clip(rng.gamma(2.0, 1.0, n), 0.05, 8.0),
        active_hour=rng.normal(14.0, 2.5, n),
        online_share=rng.beta(2.0, 5.0, n),
        country=_country_at(place),
        reachable=physical[nearest],
        reachable_count=np.maximum((distance <= _RADIUS).sum(axis=1), 1),
        favourites=shops[rng.integers(0, len(shops), (n, _FAVOURITES))],
    )
