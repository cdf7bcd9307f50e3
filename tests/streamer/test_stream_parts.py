"""Small parts of the streamer: activity entries, histograms, pace."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from prometheus_client import CollectorRegistry, Histogram

from flagger.state.records import TERMINAL_BUCKET_MS
from streamer.metrics import BulkHistogram
from streamer.produce import CHUNK_ROWS, Pace, PaceClock, chunks_of
from streamer.side_logs import decode_activity, encode_activity

DAY_MS = 86_400_000


def test_activity_counts_each_terminal_in_each_half_day() -> None:
    keys = np.array([7, 9, 7, 7, 2**64 - 1], dtype=np.uint64)
    times_ms = np.array([0, 5, TERMINAL_BUCKET_MS - 1, TERMINAL_BUCKET_MS, 3], dtype=np.int64)
    entry = decode_activity(encode_activity(keys, times_ms))
    counted = zip(
        entry.terminal_key.tolist(), entry.bucket.tolist(), entry.count.tolist(), strict=True
    )
    assert sorted(counted) == [(7, 0, 2), (7, 1, 1), (9, 0, 1), (2**64 - 1, 0, 1)]


def test_the_bulk_histogram_counts_as_the_librarys_does() -> None:
    bounds = (0.01, 0.1, 1.0)
    values = [0.0, 0.01, 0.010001, 0.1, 0.5, 1.0, 7.0]
    ours, registry = BulkHistogram("x_seconds", "x", bounds), CollectorRegistry()
    theirs = Histogram("x_seconds", "x", buckets=bounds, registry=registry)
    ours.observe_all(np.array(values[:3]))
    ours.observe_all(np.array(values[3:]))
    for value in values:
        theirs.observe(value)

    def read(metric: object) -> dict[tuple[str, str], float]:
        return {
            (sample.name, sample.labels.get("le", "")): sample.value
            for family in metric.collect()  # type: ignore[attr-defined]
            for sample in family.samples
            if not sample.name.endswith("_created")
        }

    assert read(ours) == pytest.approx(read(theirs))


def rows(times_ms: list[int]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({"event_time": pa.array(times_ms, pa.timestamp("ms", "UTC"))})


def test_a_chunk_is_half_a_day_and_so_many_rows_at_most() -> None:
    dense = list(range(CHUNK_ROWS + 10))
    assert [len(part) for part in chunks_of([rows(dense)], Pace())] == [CHUNK_ROWS, 10]
    sparse = [0, TERMINAL_BUCKET_MS - 1, TERMINAL_BUCKET_MS, 5 * DAY_MS]
    assert [len(part) for part in chunks_of([rows(sparse)], Pace())] == [2, 1, 1]
    tenths = chunks_of([rows(dense[:500])], Pace(per_s=2_000))
    assert [len(part) for part in tenths] == [200, 200, 100]
    assert [len(part) for part in chunks_of([rows(dense[:3])], Pace(speed_up=2.0))] == [1, 1, 1]


def test_rows_wait_for_their_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr("streamer.produce.time.monotonic", lambda: now_s[0])
    monkeypatch.setattr("streamer.produce.time.sleep", lambda s: now_s.__setitem__(0, now_s[0] + s))

    def moments_s(pace: Pace, times_ms: list[int]) -> list[float]:
        times, start_s, clock = rows(times_ms)["event_time"], now_s[0], PaceClock(pace)
        found = []
        for i in range(0, len(times), clock.slice_rows):
            clock.wait_until_due(i, times[i])
            found.append(now_s[0] - start_s)
        return found

    times_ms = [7_000, 7_500, 9_000, 10_000]
    assert moments_s(Pace(), times_ms) == [0.0]
    assert moments_s(Pace(per_s=200.0), times_ms) == pytest.approx([0.0, 0.005, 0.01, 0.015])
    assert moments_s(Pace(speed_up=2.0), times_ms) == pytest.approx([0.0, 0.25, 1.0, 1.5])
    both = Pace(per_s=400.0, speed_up=1_000.0)  # 2 rows in 5 ms; 2 s of events in 2 ms
    assert moments_s(both, times_ms) == pytest.approx([0.0, 0.005])
