"""Decisions to JSON in bulk: what `msgspec` would write of `messages.Decision`, compiled.

Only the frequent, plain case is written here: a decision by the model without reasons. Flagged
transactions, a percent or so, go through `msgspec`. Ids and amounts are copied as they stood in
the transaction's own JSON.
"""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel

__all__ = ["DecisionText", "encode_approvals"]

_ROOM = 40
"""Bytes for the values that are not copied: score 11, hash 16, latency up to 13."""
_HEX = np.frombuffer(b"0123456789abcdef", dtype=np.uint8).copy()
_ID, _CUSTOMER, _AMOUNT, _TIME = 0, 1, 3, 4


class DecisionText:
    """The constant parts of a decision's JSON, made once per model and policy."""

    def __init__(self, *, model: str, model_version: str, policy_version: str) -> None:
        texts = [
            '{"transaction_id":"',
            '","customer_id":"',
            '","event_time":',
            ',"amount":',
            ',"decision":"approve","decision_source":"model","score":',
            f',"model":"{model}","model_version":"{model_version}",'
            f'"policy_version":"{policy_version}","feature_hash":"',
            '","latency_ms":',
            "}",
        ]
        parts = [text.encode() for text in texts]
        self.data = np.frombuffer(b"".join(parts), dtype=np.uint8).copy()
        self.starts = np.cumsum([0] + [len(part) for part in parts]).astype(np.int64)


@kernel
def _copy(
    out: npt.NDArray[np.uint8], at: int, data: npt.NDArray[np.uint8], start: int, end: int
) -> int:
    for i in range(start, end):
        out[at] = data[i]
        at += 1
    return at


@kernel
def _write_number(out: npt.NDArray[np.uint8], at: int, value: float, places: int) -> int:
    """Write a number that is not negative with a fixed number of decimal places."""
    scale = 10**places
    scaled = int(value * scale + 0.5)
    whole = scaled // scale
    digits = 1
    while whole >= 10**digits:
        digits += 1
    for k in range(digits - 1, -1, -1):
        out[at + k] = 48 + whole % 10
        whole //= 10
    at += digits
    out[at] = 46
    rest = scaled % scale
    for k in range(places, 0, -1):
        out[at + k] = 48 + rest % 10
        rest //= 10
    return at + 1 + places


@kernel
def _write_hex(out: npt.NDArray[np.uint8], at: int, value: np.uint64) -> int:
    for k in range(16):
        nibble = (value >> np.uint64(60 - 4 * k)) & np.uint64(15)
        out[at + k] = _HEX[nibble]
    return at + 16


@kernel
def _encode(
    constant: npt.NDArray[np.uint8],
    starts: npt.NDArray[np.int64],
    text: npt.NDArray[np.uint8],
    spans: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    hashes: npt.NDArray[np.uint64],
    latencies_ms: npt.NDArray[np.float64],
    out: npt.NDArray[np.uint8],
    ends: npt.NDArray[np.int64],
) -> None:
    at = 0
    order = (_ID, _CUSTOMER, _TIME, _AMOUNT)
    for i in range(scores.shape[0]):
        for part in range(4):
            at = _copy(out, at, constant, starts[part], starts[part + 1])
            k = order[part]
            at = _copy(out, at, text, spans[i, 2 * k], spans[i, 2 * k + 1])
        at = _copy(out, at, constant, starts[4], starts[5])
        at = _write_number(out, at, float(scores[i]), 9)
        at = _copy(out, at, constant, starts[5], starts[6])
        at = _write_hex(out, at, hashes[i])
        at = _copy(out, at, constant, starts[6], starts[7])
        at = _write_number(out, at, min(max(latencies_ms[i], 0.0), 1e9), 1)
        at = _copy(out, at, constant, starts[7], starts[8])
        ends[i] = at


def encode_approvals(
    constants: DecisionText,
    text: npt.NDArray[np.uint8],
    spans: npt.NDArray[np.int64],
    scores: npt.NDArray[np.float32],
    hashes: npt.NDArray[np.uint64],
    latencies_ms: npt.NDArray[np.float64],
) -> list[bytes]:
    """Return the JSON of n approvals.

    Args:
        constants: The parts that are the same for all.
        text: `DecodedBatch.text`.
        spans: `DecodedBatch.spans` of the n rows, int64 [n, 10].
        scores: float32 [n], 0 to 1; written with nine decimal places.
        hashes: Fingerprints of the feature rows, uint64 [n].
        latencies_ms: From the message's timestamp to the decision, float64 [n].
    """
    n = len(scores)
    copied = int((spans[:, 1::2] - spans[:, 0::2]).sum())
    out = np.empty(copied + n * (len(constants.data) + _ROOM), dtype=np.uint8)
    ends = np.zeros(n + 1, dtype=np.int64)
    _encode(
        constants.data, constants.starts, text, spans, scores, hashes, latencies_ms, out, ends[1:]
    )
    raw = out[: ends[-1]].tobytes()
    places = ends.tolist()
    return [raw[a:b] for a, b in itertools.pairwise(places)]
