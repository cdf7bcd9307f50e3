"""The comparison behind the demo sees each way in which a run can be wrong."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from flagger.features import CATEGORY_FIELDS, FeatureContract
from flagger.wire.messages import Decision
from loadtest.offline import LogReplay, compare, replay_log
from loadtest.topic_reader import Records

START_MS = 1_767_225_600_000
CONTRACT = FeatureContract({name: () for name in CATEGORY_FIELDS})
N = 12


def records(values: list[bytes]) -> Records:
    n = len(values)
    return Records(
        values,
        (np.arange(n) % 2).astype(np.int16),
        np.arange(n, dtype=np.int64),
        np.zeros(n, dtype=np.int64),
        np.zeros(n),
    )


def message(number: int, **changes: Any) -> bytes:
    return json.dumps(
        {
            "transaction_id": f"t{number}",
            "event_time": START_MS + number * 60_000,
            "customer_id": f"c{number % 2}",
            "terminal_id": "m",
            "amount": 5.0 + number,
            **changes,
        }
    ).encode()


@pytest.fixture
def replay() -> LogReplay:
    log = [*(message(i) for i in range(N)), message(3), b"{"]
    return replay_log(records(log), records([]), CONTRACT)


def decisions(replay: LogReplay) -> list[Decision]:
    by_key = dict(zip(replay.key.tolist(), replay.hashes.tolist(), strict=True))
    from flagger.features.hashing import key_of

    return [
        Decision(
            transaction_id=f"t{i}",
            customer_id=f"c{i % 2}",
            event_time=START_MS,
            amount=1.0,
            decision="approve",
            decision_source="model",
            score=0.25,
            feature_hash=f"{by_key[key_of(f't{i}')]:016x}",
        )
        for i in range(N)
    ]


SCORES = np.full(N, 0.25, dtype=np.float32)


def test_a_run_without_fault_passes(replay: LogReplay) -> None:
    assert (replay.repeats, replay.unreadable) == (1, 1)
    verdict = compare(replay, SCORES, decisions(replay), dead_letters=1)
    assert (verdict.decided, verdict.failures) == (N, [])


def test_each_fault_is_seen(replay: LogReplay) -> None:
    good = decisions(replay)
    assert compare(replay, SCORES, good[1:], 1).failures == ["lost"]
    assert compare(replay, SCORES, [*good, good[0]], 1).failures == ["doubled"]
    assert compare(replay, SCORES, good, 0).failures == ["dead_letters_missing"]
    stranger = Decision(**{**{f: getattr(good[0], f) for f in good[0].__struct_fields__},
                           "transaction_id": "nobody"})  # fmt: skip
    assert compare(replay, SCORES, [*good, stranger], 1).failures == ["unexpected"]
    good[5].feature_hash = "0" * 16
    assert compare(replay, SCORES, good, 1).failures == ["different_features"]
    other = SCORES + np.float32(2e-5)
    assert compare(replay, other, decisions(replay), 1).failures == ["different_scores"]
    assert compare(replay, other, decisions(replay), 1).different_scores == N
