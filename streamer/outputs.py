"""From scores to what is written: decisions for all, alerts for the flagged, dead letters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from confluent_kafka import Message

from flagger.alert import encode_alert
from flagger.errors import BadMessageError, ModelRefusedError
from flagger.models import ModelVersion
from flagger.overrules import Overrule
from flagger.policy import APPROVE, DECISIONS
from flagger.reasons import Reason
from flagger.settings import Settings
from flagger.tracing import TRACEPARENT, Tracing
from flagger.wire.encode import DecisionText, encode_approvals
from flagger.wire.messages import Decision
from streamer.metrics import StreamerMetrics
from streamer.segments import Segment
from streamer.sink import DecisionSink
from streamer.verdicts import Tried, Verdicts

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
        self._tracing = Tracing.of(settings, "flagger-streamer")
        self.use(model)

    def close(self) -> None:
        """Send the spans that wait."""
        if self._tracing is not None:
            self._tracing.close()

    def use(self, model: ModelVersion) -> None:
        """Decide by another version's policy from now on."""
        self._constants = DecisionText(
            model=self._settings.streamer_model,
            model_version=model.version,
            policy_version=model.policy.version,
        )

    def write_decisions(
        self,
        segment: Segment,
        rows: npt.NDArray[np.intp],
        hashes: npt.NDArray[np.uint64],
        verdicts: Verdicts,
        reasons: list[list[Reason]],
        forwarded: list[int],
    ) -> None:
        """Write the segment's decisions in log order, and the flagged ones as alerts too.

        Args:
            segment: The messages.
            rows: Which rows of the segment are decided here, intp [n], rising.
            hashes: Fingerprints of the feature rows, uint64 [n].
            verdicts: The n decisions.
            reasons: Why those in `verdicts.flagged` are flagged.
            forwarded: Rows that the gateway has decided already.
        """
        values: list[bytes] = []
        flagged = np.zeros(len(rows), dtype=np.bool_)
        if len(rows):
            values = self._values(segment, rows, hashes, verdicts, reasons)
            flagged[verdicts.flagged] = True
        if forwarded:
            decisions = [segment.decoded.decided[row] for row in forwarded]
            values += [msgspec.json.encode(decision) for decision in decisions]
            theirs = np.array([d.decision != DECISIONS[APPROVE] for d in decisions])
            rows = np.concatenate([rows, np.array(forwarded, dtype=np.intp)])
            order = np.argsort(rows)
            values = [values[i] for i in order.tolist()]
            rows, flagged = rows[order], np.concatenate([flagged, theirs])[order]
            for decision in decisions:
                self._metrics.decided.labels(decision.decision, decision.decision_source).inc()
        self._send(segment, rows, values, np.flatnonzero(flagged).tolist())

    def _values(
        self,
        segment: Segment,
        rows: npt.NDArray[np.intp],
        hashes: npt.NDArray[np.uint64],
        verdicts: Verdicts,
        reasons: list[list[Reason]],
    ) -> list[bytes]:
        """Return the JSON of each decision."""
        stamps_ms = segment.polled.timestamp_ms[segment.decoded.source[rows]]
        latencies_ms = np.maximum(self._clock_ms() - stamps_ms, 0).astype(np.float64)
        scores = verdicts.scores
        values = encode_approvals(
            self._constants,
            segment.decoded.text,
            segment.decoded.spans[rows],
            np.zeros(len(rows), dtype=np.float32) if scores is None else scores,
            hashes,
            latencies_ms,
        )
        if scores is None:
            values = [_by_others(value, verdicts.source) for value in values]
        if verdicts.tried is not None:
            for i in np.flatnonzero(verdicts.tried.mask).tolist():
                values[i] = _tried(values[i], verdicts.tried)
        for i, why in zip(verdicts.flagged.tolist(), reasons, strict=True):
            values[i] = _flagged(values[i], DECISIONS[int(verdicts.codes[i])], why)
        counts = np.bincount(verdicts.codes, minlength=3)
        for i, overrule in verdicts.overruled.items():
            values[i] = _overruled(values[i], overrule)
            counts[overrule.code] -= 1
            self._metrics.decided.labels(DECISIONS[overrule.code], overrule.source).inc()
        for code, count in enumerate(counts.tolist()):
            self._metrics.decided.labels(DECISIONS[code], verdicts.source).inc(count)
        self._metrics.latency_s.observe_all(latencies_ms / 1000)
        if scores is not None:
            self._metrics.scores.observe_all(scores)
        return values

    def _send(
        self,
        segment: Segment,
        rows: npt.NDArray[np.intp],
        values: list[bytes],
        alerts: list[int],
    ) -> None:
        if not values:
            return
        source = segment.decoded.source[rows]
        keys = _customer_ids(segment, segment.decoded.spans[rows])
        partitions = segment.polled.partition[source].tolist()
        # A broker may refuse times ahead of its clock, by another limit than the log's.
        stamps = np.minimum(segment.polled.timestamp_ms[source], self._clock_ms()).tolist()
        traces = self._traces(segment, source)
        self._sink.write(self._settings.decisions_topic, values, keys, partitions, stamps, traces)
        if alerts:
            self._sink.write(
                self._settings.alerts_topic,
                [encode_alert(values[i], segment.polled.values[source[i]]) for i in alerts],
                [keys[i] for i in alerts],
                [partitions[i] for i in alerts],
                [stamps[i] for i in alerts],
                None if traces is None else [traces[i] for i in alerts],
            )

    def _traces(
        self, segment: Segment, source: npt.NDArray[np.int64]
    ) -> list[dict[str, str] | None] | None:
        """Return the headers that continue each message's trace; None: there is no trace."""
        found = segment.polled.traces
        if self._tracing is None or not found:
            return None
        headers: list[dict[str, str] | None] = [None] * len(source)
        for i, place in enumerate(source.tolist()):
            if place in found:
                headers[i] = {
                    TRACEPARENT: self._tracing.add_decision(
                        found[place],
                        int(segment.polled.timestamp_ms[place]),
                        {
                            "messaging.system": "kafka",
                            "messaging.destination.name": self._settings.transactions_topic,
                            "messaging.destination.partition.id": str(
                                segment.polled.partition[place]
                            ),
                            "messaging.kafka.offset": int(segment.polled.offset[place]),
                        },
                    )
                }
        return headers

    def write_refused(self, segment: Segment, refused: dict[int, ModelRefusedError]) -> None:
        """Write the rows that the model server refuses (row -> why) as dead letters."""
        for row, error in refused.items():
            self._dead_letter(segment, int(segment.decoded.source[row]), error)

    def write_bad(self, segment: Segment, first_live: npt.NDArray[np.int64]) -> None:
        """Write the messages that cannot be read to the dead-letter topic.

        Args:
            segment: The messages.
            first_live: Offset by partition before which everything has been written earlier.
        """
        for place, error in segment.decoded.bad:
            if segment.polled.offset[place] >= first_live[segment.polled.partition[place]]:
                self._dead_letter(segment, place, error)

    def write_refused_entries(self, refused: Sequence[tuple[Message, BadMessageError]]) -> None:
        """Write messages of the side logs that are no entries to the dead-letter topic."""
        for message, error in refused:
            place = (message.partition(), message.offset())
            self._write_dead_letter(message.value() or b"", message.topic(), place, error)

    def _dead_letter(self, segment: Segment, place: int, error: Exception) -> None:
        polled = segment.polled
        where = (int(polled.partition[place]), int(polled.offset[place]))
        topic = self._settings.transactions_topic
        self._write_dead_letter(polled.original(place), topic, where, error)

    def _write_dead_letter(
        self, value: bytes, topic: str, place: tuple[int, int], error: Exception
    ) -> None:
        self._sink.dead_letter(value, topic=topic, place=place, error=error)
        self._metrics.dead_lettered.inc()


def _flagged(approval: bytes, decision: str, reasons: list[Reason]) -> bytes:
    flagged = msgspec.json.decode(approval, type=Decision)
    flagged.decision = decision
    flagged.reasons = [reason.text for reason in reasons]
    flagged.reason_codes = [reason.code for reason in reasons]
    return msgspec.json.encode(flagged)


def _tried(value: bytes, tried: Tried) -> bytes:
    """Return the decision as one that the candidate made."""
    decision = msgspec.json.decode(value, type=Decision)
    decision.model_version = tried.model_version
    decision.policy_version = tried.policy_version
    return msgspec.json.encode(decision)


def _overruled(value: bytes, overrule: Overrule) -> bytes:
    """Return the decision as one that lists or rules made; an approval then has reasons too."""
    decision = msgspec.json.decode(value, type=Decision)
    decision.decision_source = overrule.source
    if overrule.code == APPROVE:
        decision.reasons = [reason.text for reason in overrule.reasons]
        decision.reason_codes = [reason.code for reason in overrule.reasons]
    return msgspec.json.encode(decision)


def _by_others(approval: bytes, source: str) -> bytes:
    """Return the decision as one that no model made."""
    decision = msgspec.json.decode(approval, type=Decision)
    decision.decision_source = source
    decision.score = None
    decision.model = decision.model_version = decision.policy_version = ""
    return msgspec.json.encode(decision)


def _customer_ids(segment: Segment, spans: npt.NDArray[np.int64]) -> list[bytes]:
    text = segment.decoded.text.tobytes()
    ids = [text[a:b] for a, b in spans[:, 2:4].tolist()]
    if b"\\" in text:  # somewhere in the batch; such an id is then escaped as JSON
        ids = [msgspec.json.decode(b'"' + i + b'"', type=str).encode() for i in ids]
    return ids
