"""A registry that hesitates is asked again; one that stays away is named."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import streamer.registry
from flagger.errors import SchemaRegistryError
from flagger.settings import Settings
from streamer.registry import SchemaRegistry


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> SchemaRegistry:
    monkeypatch.setattr(streamer.registry, "_PAUSE_S", 0.0)
    return SchemaRegistry(Settings(schema_registry_url="http://127.0.0.1:9"))


def test_what_fails_twice_succeeds_then(registry: SchemaRegistry) -> None:
    answers: Iterator[Exception | int] = iter(
        [TimeoutError("slow"), ConnectionRefusedError("away"), 7]
    )

    def ask() -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    assert registry.patiently("answer", ask) == 7


def test_a_registry_that_stays_away_is_named(registry: SchemaRegistry) -> None:
    with pytest.raises(SchemaRegistryError, match=r"127\.0\.0\.1:9 did not tell schema 3"):
        registry.find(3)
