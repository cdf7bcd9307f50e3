"""Imported by the fork server of `crash_points`: loads the kernels that every streamer needs."""

from __future__ import annotations

import time

from flagger.features import FeatureEngine
from flagger.models import live_version, load_version
from flagger.settings import Settings
from flagger.wire.decode import decode_transactions

_MESSAGE = b'{"transaction_id":"t","event_time":0,"customer_id":"c","terminal_id":"m","amount":1}'


def _warm_up() -> None:
    """Decode and compute one row; the kernels come from their cache on disk."""
    decoded = decode_transactions([_MESSAGE], time.time_ns() // 1_000_000)
    repository = Settings().model_repository
    model = load_version(repository, live_version(repository))
    FeatureEngine(model.contract).process(decoded.transactions).hashes()


_warm_up()
