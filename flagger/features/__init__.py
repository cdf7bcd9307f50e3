"""Features: declared in the catalogue, computed by one set of compiled kernels on every path."""

from flagger.features.batch import CATEGORY_FIELDS, LabelBatch, TransactionBatch
from flagger.features.catalogue import CATALOGUE, FEATURE_NAMES, Feature, catalogue_hash
from flagger.features.contract import FeatureContract
from flagger.features.engine import ActivityBatch, FeatureEngine, FeatureRows, LogPositions
from flagger.features.rows import ALREADY_APPLIED, DUPLICATE, LATE, MOVED

__all__ = [
    "ALREADY_APPLIED",
    "CATALOGUE",
    "CATEGORY_FIELDS",
    "DUPLICATE",
    "FEATURE_NAMES",
    "LATE",
    "MOVED",
    "ActivityBatch",
    "Feature",
    "FeatureContract",
    "FeatureEngine",
    "FeatureRows",
    "LabelBatch",
    "LogPositions",
    "TransactionBatch",
    "catalogue_hash",
]
