"""Keys are XXH64: the same on every machine and in every release."""

from __future__ import annotations

import xxhash
from hypothesis import given
from hypothesis import strategies as st

from flagger.features.hashing import key_of


@given(st.text(max_size=200))
def test_keys_are_xxh64_of_the_utf8_text(text: str) -> None:
    assert key_of(text) == xxhash.xxh64(text.encode()).intdigest()


def test_every_tail_length_is_hashed() -> None:
    for length in range(100):
        text = "x" * length
        assert key_of(text) == xxhash.xxh64(text.encode()).intdigest()
