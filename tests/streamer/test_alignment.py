"""No row is released before the slower partitions have come near it, and nothing is lost."""

from __future__ import annotations

import json
import random

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flagger.state.records import DAY_MS, TERMINAL_BUCKET_MS
from streamer.alignment import MAX_SKEW_MS, Aligner, window_limit_ms
from streamer.segments import Polled, Segment, read_segment

START_MS = 1_700_006_400_000
DELAY_MS = 7 * DAY_MS


def segment(rows: list[tuple[int, int, int | None]]) -> Segment:
    """Make a segment of (partition, offset, event time in days; None: a message nobody reads)."""
    values = [
        b"{"
        if days is None
        else json.dumps(
            {
                "transaction_id": f"{partition}-{offset}",
                "customer_id": f"c{partition}",
                "terminal_id": "m",
                "event_time": START_MS + days * DAY_MS,
                "amount": 1.5,
            }
        ).encode()
        for partition, offset, days in rows
    ]
    polled = Polled(
        values,
        np.array([r[0] for r in rows], dtype=np.int16),
        np.array([r[1] for r in rows], dtype=np.int64),
        np.zeros(len(rows), dtype=np.int64),
    )
    return read_segment(polled, START_MS + 1_000 * DAY_MS)


def released(segments: list[Segment]) -> list[tuple[int, int]]:
    return [
        (int(p), int(o))
        for s in segments
        for p, o in zip(s.polled.partition, s.polled.offset, strict=True)
    ]


def test_live_traffic_passes_whole() -> None:
    aligner = Aligner(DELAY_MS, lambda: {0, 1})
    first = segment([(0, 0, 0), (1, 0, 0), (0, 1, 1)])
    assert released(aligner.offer(first)) == [(0, 0), (1, 0), (0, 1)]
    assert aligner.held_messages == 0


def test_a_partition_waits_for_one_that_has_a_backlog_and_shown_nothing() -> None:
    behind = {0, 1}
    aligner = Aligner(DELAY_MS, lambda: behind)
    assert aligner.offer(segment([(0, 0, 0), (0, 1, 5)])) == []
    assert aligner.held_partitions == {0}
    got = released(aligner.offer(segment([(1, 0, 1)])))
    assert got == [(0, 0), (1, 0)]
    behind.clear()
    assert released(aligner.offer(None)) == [(0, 1)]


def test_unreadable_messages_keep_their_place_in_the_partition() -> None:
    behind = {0, 1}
    aligner = Aligner(DELAY_MS, lambda: behind)
    rows = [(0, 0, None), (0, 1, 0), (0, 2, None), (0, 3, 9), (0, 4, None), (1, 0, 0)]
    ready = aligner.offer(segment(rows))
    assert released(ready) == [(0, 0), (0, 1), (0, 2), (1, 0)]
    assert [place for s in ready for place, _ in s.decoded.bad] == [0, 2]
    behind.clear()
    rest = aligner.offer(None)
    assert released(rest) == [(0, 3), (0, 4)]
    assert [place for s in rest for place, _ in s.decoded.bad] == [1]
    assert rest[0].decoded.transactions.event_time_ms.tolist() == [START_MS + 9 * DAY_MS]


def test_windows_are_complete_up_to_the_end_of_the_half_day() -> None:
    limit = window_limit_ms(START_MS, DELAY_MS)
    assert (limit - 1 - DELAY_MS) // TERMINAL_BUCKET_MS * TERMINAL_BUCKET_MS <= START_MS
    assert (limit - DELAY_MS) // TERMINAL_BUCKET_MS * TERMINAL_BUCKET_MS > START_MS


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=15), min_size=1, max_size=3),
    st.randoms(use_true_random=False),
)
def test_whatever_the_order_of_arrival_nothing_runs_ahead_or_gets_lost(
    steps: list[list[int]], random: np.random.Generator
) -> None:
    logs = [np.cumsum(part).tolist() for part in steps]
    left = [0] * len(logs)
    aligner = Aligner(DELAY_MS, lambda: {p for p, log in enumerate(logs) if left[p] < len(log)})
    seen: list[list[int]] = [[] for _ in logs]
    for _ in range(1_000):
        waiting = [p for p, log in enumerate(logs) if left[p] < len(log)]
        part = None
        if waiting:
            p = random.choice(waiting)
            end = min(left[p] + 4, len(logs[p]))
            part = segment([(p, o, logs[p][o]) for o in range(left[p], end)])
            left[p] = end
        for partition, offset in released(aligner.offer(part)):
            assert offset == len(seen[partition])
            seen[partition].append(logs[partition][offset])
            reached = [
                seen[q][-1] if seen[q] else log[0]
                for q, log in enumerate(logs)
                if len(seen[q]) < len(log)
            ]
            next_up = [log[len(seen[q])] for q, log in enumerate(logs) if len(seen[q]) < len(log)]
            slack_days = MAX_SKEW_MS // DAY_MS
            if reached:
                assert logs[partition][offset] <= max(min(next_up), min(reached)) + slack_days
        if not waiting and aligner.held_messages == 0:
            break
    assert seen == logs


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=15), min_size=2, max_size=4),
    st.integers(0, 10_000),
)
def test_two_streamers_stay_together_and_never_wait_for_each_other(
    steps: list[list[int]], seed: int
) -> None:
    order = random.Random(seed)
    # As `group_progress` sees it: a partition's progress is the time of its next message.
    logs = [np.cumsum(part).tolist() for part in steps]
    owner = [p % 2 for p in range(len(logs))]
    read, done = [0] * len(logs), [0] * len(logs)

    def next_up(partitions: list[int]) -> list[int]:
        return [logs[p][done[p]] for p in partitions if done[p] < len(logs[p])]

    def of(streamer: int) -> list[int]:
        return [p for p in range(len(logs)) if owner[p] == streamer]

    def aligner_of(streamer: int) -> Aligner:
        def others_slowest_ms() -> int | None:
            days = min(next_up(of(1 - streamer)), default=None)
            return None if days is None else START_MS + days * DAY_MS

        return Aligner(
            DELAY_MS,
            lambda: {p for p in of(streamer) if read[p] < len(logs[p])},
            others_slowest_ms,
        )

    aligners = [aligner_of(0), aligner_of(1)]
    for _ in range(1_000):
        streamer = order.choice([0, 1])
        waiting = [p for p in of(streamer) if read[p] < len(logs[p])]
        part = None
        if waiting:
            p = order.choice(waiting)
            end = min(read[p] + 4, len(logs[p]))
            part = segment([(p, o, logs[p][o]) for o in range(read[p], end)])
            read[p] = end
        for partition, offset in released(aligners[streamer].offer(part)):
            slowest_of_the_other = min(next_up(of(1 - streamer)), default=None)
            if slowest_of_the_other is not None:
                ahead_days = logs[partition][offset] - slowest_of_the_other
                assert ahead_days < MAX_SKEW_MS // DAY_MS
            assert offset == done[partition]
            done[partition] += 1
        if all(count == len(log) for count, log in zip(done, logs, strict=True)):
            return
    raise AssertionError(f"they wait for each other: {done} of {[len(log) for log in logs]}")
