"""XXH64 of byte spans: how ids and categories become fixed-size keys.

Algorithm: Yann Collet, "XXH64", https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
(seed 0). Tests compare it with the reference implementation. 64 bits keep the chance of any two
of a million customers sharing a key below 3e-8; the key 0 is reserved for "absent".
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from flagger.compiled import kernel

__all__ = ["ABSENT", "hash_span", "hash_spans", "key_of"]

ABSENT = 0
"""The key of a value that is not there."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)


@kernel
def _rotl(x: np.uint64, r: int) -> np.uint64:
    return (x << np.uint64(r)) | (x >> np.uint64(64 - r))


@kernel
def _read64(data: npt.NDArray[np.uint8], i: int) -> np.uint64:
    value = np.uint64(0)
    for k in range(8):
        value |= np.uint64(data[i + k]) << np.uint64(8 * k)
    return value


@kernel
def _read32(data: npt.NDArray[np.uint8], i: int) -> np.uint64:
    value = np.uint64(0)
    for k in range(4):
        value |= np.uint64(data[i + k]) << np.uint64(8 * k)
    return value


@kernel
def _round(acc: np.uint64, lane: np.uint64) -> np.uint64:
    return _rotl(acc + lane * _P2, 31) * _P1


@kernel
def hash_span(data: npt.NDArray[np.uint8], start: int, end: int) -> np.uint64:
    """Return XXH64 (seed 0) of `data[start:end]` as uint64; never `ABSENT`."""
    length = np.uint64(end - start)
    i = start
    if end - start >= 32:
        v1 = _P1 + _P2
        v2 = _P2
        v3 = np.uint64(0)
        v4 = np.uint64(0) - _P1
        while i + 32 <= end:
            v1 = _round(v1, _read64(data, i))
            v2 = _round(v2, _read64(data, i + 8))
            v3 = _round(v3, _read64(data, i + 16))
            v4 = _round(v4, _read64(data, i + 24))
            i += 32
        acc = _rotl(v1, 1) + _rotl(v2, 7) + _rotl(v3, 12) + _rotl(v4, 18)
        for v in (v1, v2, v3, v4):
            acc = (acc ^ _round(np.uint64(0), v)) * _P1 + _P4
    else:
        acc = _P5
    acc += length
    while i + 8 <= end:
        acc = _rotl(acc ^ _round(np.uint64(0), _read64(data, i)), 27) * _P1 + _P4
        i += 8
    if i + 4 <= end:
        acc = _rotl(acc ^ (_read32(data, i) * _P1), 23) * _P2 + _P3
        i += 4
    while i < end:
        acc = _rotl(acc ^ (np.uint64(data[i]) * _P5), 11) * _P1
        i += 1
    acc = (acc ^ (acc >> np.uint64(33))) * _P2
    acc = (acc ^ (acc >> np.uint64(29))) * _P3
    acc ^= acc >> np.uint64(32)
    return acc if acc != np.uint64(0) else np.uint64(1)


@kernel
def hash_spans(
    data: npt.NDArray[np.uint8], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """Return the keys of the spans `data[starts[i]:ends[i]]`, uint64 [n]; start < 0 is absent."""
    keys = np.zeros(starts.shape[0], dtype=np.uint64)
    for i in range(starts.shape[0]):
        if starts[i] >= 0:
            keys[i] = hash_span(data, starts[i], ends[i])
    return keys


def key_of(text: str) -> int:
    """Return the key of one string (UTF-8), as the kernels compute it."""
    data = np.frombuffer(text.encode() + b"\0", dtype=np.uint8)
    return int(hash_span(data, 0, len(data) - 1))
