"""The streamer's judge with the brakes: declines become reviews that say why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flagger.brakes import BRAKE_CODE
from flagger.models import ModelVersion, live_version, load_version
from flagger.policy import DECLINE, REVIEW
from flagger.settings import Settings
from streamer.metrics import StreamerMetrics
from streamer.verdicts import EXPLAINED_WITHIN_MS, Judge

REPOSITORY = Path(__file__).parents[2] / "model_repository"


@pytest.fixture(scope="module")
def model() -> ModelVersion:
    return load_version(REPOSITORY, live_version(REPOSITORY))


def test_declines_beyond_the_cap_become_reviews_that_say_why(model: ModelVersion) -> None:
    metrics = StreamerMetrics()
    settings = Settings(brake_decline_share=0.1, brake_flag_share=1.0, brake_window_decisions=100)
    brakes = metrics.brakes_of(settings)
    judge = Judge(model, None, Settings(), lambda _: None, brakes)  # type: ignore[arg-type]
    rows = np.zeros((30, len(model.contract.names)), dtype=np.float32)
    scores = np.full(30, 0.9999, dtype=np.float32)
    long_ago = np.full(30, EXPLAINED_WITHIN_MS + 1.0)  # nobody is asked for explanations
    verdicts = judge.by_model(rows, scores, long_ago)
    assert verdicts.codes.tolist() == [DECLINE] * 10 + [REVIEW] * 20
    reasons = verdicts.reasons()
    assert [r.code for r in reasons[0]] == ["score"]
    assert [r.code for r in reasons[10]] == ["score", BRAKE_CODE]
    assert "decline threshold" in reasons[10][0].text
    registry = metrics.registry
    assert registry.get_sample_value("flagger_streamer_braked_total") == 20
    engaged = "flagger_streamer_brake_engaged"
    assert registry.get_sample_value(engaged, {"cap": "decline"}) == 1
    judge.use(model)  # another version, or other thresholds: nothing is held against it
    assert registry.get_sample_value(engaged, {"cap": "decline"}) == 0
    assert judge.by_model(rows[:1], scores[:1], long_ago[:1]).codes.tolist() == [DECLINE]
