"""Explanations from the real Triton: they add up, and without them nothing waits or fails."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import xgboost

from deploy.local.stack import LocalStack
from export.training import SAMPLE_FILE, sample_rows
from flagger.explanations import REST_S, Explainer
from flagger.features import FEATURE_NAMES
from flagger.models import FIL_ENTRY, load_version, version_folder
from flagger.policy import APPROVE
from flagger.reasons import MAX_TOPICS, SCORE_CODE, ReasonWriter
from flagger.triton import MAX_EXPLAINED_ROWS, ModelName, Scorer

pytestmark = pytest.mark.stack

NOBODY = "127.0.0.1:9"
Published = tuple[Path, str]
Rows = npt.NDArray[np.float32]


@pytest.fixture
def scorer(stack: LocalStack) -> Iterator[Scorer]:
    connection = Scorer(stack.addresses.triton_url, timeout_ms=30_000)
    yield connection
    connection.close()


@pytest.fixture
def real_rows(published: Published) -> Rows:
    """Feature rows of real transactions, more than 1,000, each with another NaN pattern."""
    repository, version = published
    rows = sample_rows(version_folder(repository, version) / SAMPLE_FILE, FEATURE_NAMES)
    assert rows is not None
    return rows


class Missing(list[int]):
    """What was counted as unexplained."""


def explainer(scorer: Scorer, version: str, missing: Missing, timeout_ms: int) -> Explainer:
    return Explainer(scorer, version, timeout_ms=timeout_ms, on_missing=missing.append)


def test_ten_thousand_explanations_add_up_to_the_raw_margin(
    scorer: Scorer, published: Published, real_rows: Rows
) -> None:
    repository, version = published
    random = np.random.default_rng(5)
    rows = real_rows[random.integers(0, len(real_rows), 10_000)]
    for column in range(rows.shape[1]):  # rows that no real transaction has
        random.shuffle(rows[:, column])
    missing = Missing()
    contributions = explainer(scorer, version, missing, 60_000).submit(rows).result()
    assert missing == []
    assert contributions.shape == (10_000, len(FEATURE_NAMES) + 1)
    booster = xgboost.Booster(model_file=version_folder(repository, version) / "xgboost.json")
    margins = booster.inplace_predict(rows, predict_type="margin", missing=np.nan)
    assert np.ptp(margins) > 1
    sums = contributions.astype(np.float64).sum(axis=1)
    np.testing.assert_allclose(sums, margins, rtol=0, atol=1e-4)
    matrix = xgboost.DMatrix(rows[:500], missing=np.nan, feature_names=booster.feature_names)
    own = booster.predict(matrix, pred_contribs=True)
    np.testing.assert_allclose(contributions[:500], own, rtol=0, atol=1e-5)


def test_every_flagged_transaction_gets_reasons(
    scorer: Scorer, published: Published, real_rows: Rows
) -> None:
    repository, version = published
    model = load_version(repository, version)
    scores = scorer.score(real_rows, ModelName(FIL_ENTRY, version))
    codes = model.policy.decide(scores)
    flagged = np.flatnonzero(codes != APPROVE)
    assert len(flagged) > MAX_EXPLAINED_ROWS  # several requests
    missing = Missing()
    pending = explainer(scorer, version, missing, 10_000).submit(real_rows[flagged])
    while not pending.done:
        time.sleep(0.001)
    found = ReasonWriter(model.policy, model.contract).write(
        real_rows[flagged], scores[flagged], codes[flagged], pending.result()
    )
    assert missing == []
    for reasons in found:
        codes_told = [reason.code for reason in reasons]
        assert codes_told[0] == SCORE_CODE
        assert 2 <= len(codes_told) <= 1 + MAX_TOPICS
        assert len(set(codes_told)) == len(codes_told)


def test_nothing_to_explain_is_answered_at_once(scorer: Scorer, published: Published) -> None:
    missing = Missing()
    pending = explainer(scorer, published[1], missing, 1_000).submit(
        np.empty((0, len(FEATURE_NAMES)), dtype=np.float32)
    )
    assert pending.done
    assert pending.result().shape == (0, len(FEATURE_NAMES) + 1)
    assert missing == []


def test_a_version_that_is_not_served_leaves_rows_unexplained_and_rests(
    scorer: Scorer, real_rows: Rows
) -> None:
    now_s, missing = [0.0], Missing()
    asker = Explainer(
        scorer, "999", timeout_ms=5_000, on_missing=missing.append, clock_s=lambda: now_s[0]
    )
    assert np.isnan(asker.submit(real_rows[:20]).result()).all()
    assert missing == [20]
    resting = asker.submit(real_rows[:3])
    assert resting.done  # nobody was asked
    assert np.isnan(resting.result()).all()
    assert missing == [20, 3]


def test_after_a_rest_it_is_asked_again_and_another_version_answers(
    scorer: Scorer, published: Published, real_rows: Rows
) -> None:
    now_s, missing = [0.0], Missing()
    asker = Explainer(
        scorer, "999", timeout_ms=5_000, on_missing=missing.append, clock_s=lambda: now_s[0]
    )
    asker.submit(real_rows[:2]).result()
    now_s[0] += REST_S
    asker.use(published[1])
    assert np.isfinite(asker.submit(real_rows[:2]).result()).all()
    assert missing == [2]


def test_a_server_that_is_away_costs_its_time_limit_at_most(real_rows: Rows) -> None:
    connection, missing = Scorer(NOBODY, timeout_ms=2_000), Missing()
    try:
        started_s = time.monotonic()
        contributions = explainer(connection, "1", missing, 300).submit(real_rows[:50]).result()
        assert time.monotonic() - started_s < 2.0
    finally:
        connection.close()
    assert np.isnan(contributions).all()
    assert missing == [50]


def test_switched_off_asks_nobody(real_rows: Rows) -> None:
    connection, missing = Scorer(NOBODY, timeout_ms=2_000), Missing()
    try:
        pending = explainer(connection, "1", missing, 0).submit(real_rows[:5])
        assert pending.done
        assert np.isnan(pending.result()).all()
    finally:
        connection.close()
    assert missing == []
