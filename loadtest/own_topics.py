"""Names for the topics of one run, so that runs on one broker do not meet."""

from __future__ import annotations

from flagger.settings import Settings

__all__ = ["TOPIC_FIELDS", "own_topic_names"]

TOPIC_FIELDS = tuple(name for name in Settings.model_fields if name.endswith("_topic"))
"""The settings that name a topic."""


def own_topic_names(run: str) -> dict[str, str]:
    """Return setting -> topic, each with `run` in front: what `Settings.model_copy` updates."""
    return {field: f"{run}-{field.removesuffix('_topic')}" for field in TOPIC_FIELDS}
