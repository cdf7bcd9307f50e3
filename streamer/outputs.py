"""From scores to what is written: decisions for all, alerts for the flagged, dead letters."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import numpy as np
import numpy.typing as npt

from flagger.errors import ModelRefusedError
from flagger.models import ModelVersion
from flagger.policy import APPROVE, DECISIONS
from flagger.settings import Settings
from flagger.wire.encode import DecisionText, encode_approvals
from flagger.wire.messages import Decision
from streamer.metrics import StreamerMetrics
from streamer.segments import Segment
from streamer.sink import DecisionSink

__all__ = ["OutputWriter"]


class OutputWriter:
    """Writes what was decided into the open transaction.

    Args:
        sink: The transactional producer.
        model: The live version: its policy decides.
        clock_ms: Returns the current time, epoch milliseconds.
    """

    def __init__(
        self,
        sink: DecisionSink,
        model: ModelVersion,
        settings: Settings,
        metrics: StreamerMetrics,
        clock_ms: Callable[[], int],
    ) -> None:
        self._sink = sink
        self._settings = settings
        self._metrics = metrics
        self._clock_ms = clock_ms
        self._policy = model.policy
        self._names = {
            "model": settings.streamer_model,
            "model_version": model.version,
            "policy_version": model.policy.version,
        }
        self._constants = DecisionText(**self._names)

    def write_scored(
        self,
        segment: Segment,
        rows: npt.NDArray[np.intp],
        scores: npt.NDArray[np.float32],
        hashes: npt.NDArray[np.uint64],
        refused: dict[int, ModelRefusedError],
    ) -> None:
        """Write the decisions of the segment's rows that the model has scored.

        Args:
            segment: The messages.
            rows: Which rows of the segment were scored, intp [n].
            scores: float32 [n]; NaN where refused.
            hashes: Fingerprints of the feature rows, uint64 [n].
            refused: Place in `rows` -> why the server refuses that row.
        """
        if refused:
            for i, error in refused.items():
                self._dead_letter(segment, int(segment.decoded.source[rows[i]]), error)
            good = ~np.isnan(scores)
            rows, scores, hashes = rows[good], scores[good], hashes[good]
        if not len(rows):
            return
        source = segment.decoded.source[rows]
        timestamps_ms = segment.polled.timestamp_ms[source]
        latencies_ms = np.maximum(self._clock_ms() - timestamps_ms, 0).astype(np.float64)
        codes = self._policy.decide(scores)
        spans = segment.decoded.spans[rows]
        values = encode_approvals(
            self._constants, segment.decoded.text, spans, scores, hashes, latencies_ms
        )
        flagged = np.flatnonzero(codes != APPROVE)
        for i in flagged.tolist():
            values[i] = self._flagged(values[i], scores[i], int(codes[i]))
        keys = _customer_ids(segment, spans)
        partitions = segment.polled.partition[source].tolist()
        stamps = timestamps_ms.tolist()
        self._sink.write(self._settings.decisions_topic, values, keys, partitions, stamps)
        if len(flagged):
            chosen = flagged.tolist()
            self._sink.write(
                self._settings.alerts_topic,
                [values[i] for i in chosen],
                [keys[i] for i in chosen],
                [partitions[i] for i in chosen],
                [stamps[i] for i in chosen],
            )
        for code, count in enumerate(np.bincount(codes, minlength=len(DECISIONS)).tolist()):
            self._metrics.decided.labels(DECISIONS[code], "model").inc(count)
        self._metrics.latency_s.observe_all(latencies_ms / 1000)

    def write_forwarded(self, segment: Segment, rows: list[int]) -> None:
        """Write the decisions that the gateway has made already."""
        for row in rows:
            decision = segment.decoded.decided[row]
            place = int(segment.decoded.source[row])
            message = (
                [msgspec.json.encode(decision)],
                [decision.customer_id.encode()],
                [int(segment.polled.partition[place])],
                [int(segment.polled.timestamp_ms[place])],
            )
            self._sink.write(self._settings.decisions_topic, *message)
            if decision.decision != DECISIONS[APPROVE]:
                self._sink.write(self._settings.alerts_topic, *message)
            self._metrics.decided.labels(decision.decision, decision.decision_source).inc()

    def write_bad(self, segment: Segment, first_live: npt.NDArray[np.int64]) -> None:
        """Write the messages that cannot be read to the dead-letter topic.

        Args:
            segment: The messages.
            first_live: Offset by partition before which everything has been written earlier.
        """
        for place, error in segment.decoded.bad:
            if segment.polled.offset[place] >= first_live[segment.polled.partition[place]]:
                self._dead_letter(segment, place, error)

    def _dead_letter(self, segment: Segment, place: int, error: Exception) -> None:
        polled = segment.polled
        self._sink.dead_letter(
            polled.values[place],
            topic=self._settings.transactions_topic,
            place=(int(polled.partition[place]), int(polled.offset[place])),
            error=error,
        )
        self._metrics.dead_lettered.inc()

    def _flagged(self, approval: bytes, score: np.float32, code: int) -> bytes:
        decision = msgspec.json.decode(approval, type=Decision)
        decision.decision = DECISIONS[code]
        decision.reasons = self._policy.reason(float(score), code)
        return msgspec.json.encode(decision)


def _customer_ids(segment: Segment, spans: npt.NDArray[np.int64]) -> list[bytes]:
    text = segment.decoded.text.tobytes()
    ids = [text[a:b] for a, b in spans[:, 2:4].tolist()]
    if b"\\" in text:  # somewhere in the batch; such an id is then escaped as JSON
        ids = [msgspec.json.decode(b'"' + i + b'"', type=str).encode() for i in ids]
    return ids
