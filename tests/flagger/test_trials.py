"""Shadow and canary in the pointer: who may be tried, who is chosen, when it ends by itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flagger.canary import Canary, CanaryGuard
from flagger.errors import ConfigurationError
from flagger.features import CATEGORY_FIELDS, FeatureContract, FeatureEngine, TransactionBatch
from flagger.features.hashing import key_of
from flagger.live import FOLLOW_INTERVAL_S
from flagger.models import ModelVersion, file_sha256, set_live_version
from flagger.pointer import POINTER_FILE, read_audit, read_pointer
from flagger.policies import set_policy
from flagger.policy import Policy
from flagger.recode import CategoryCodes
from flagger.trials import (
    RETRY_INTERVAL_S,
    Attempts,
    Trials,
    TrialsFollower,
    end_canary,
    set_canary,
    set_shadow,
)

CONTRACT = FeatureContract({field: ("EUR",) for field in CATEGORY_FIELDS})
KEYS = np.random.default_rng(0).integers(1, 2**63, size=100_000).astype(np.uint64)


def publish(repository: Path, version: str, contract: FeatureContract = CONTRACT) -> None:
    folder = repository / "fraud_fil" / version
    folder.mkdir(parents=True)
    (folder / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    (folder / "policy.json").write_text(json.dumps(Policy("p", 0.4, 0.8).to_dict()))
    sums = {p.relative_to(repository).as_posix(): file_sha256(p) for p in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"artefacts": sums}))


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1, 2 and 3; 1 is live; 3 learned with another label delay."""
    publish(tmp_path, "1")
    publish(tmp_path, "2")
    publish(tmp_path, "3", replace(CONTRACT, label_delay_days=3))
    set_live_version(tmp_path, "1")
    return tmp_path


def test_trials_stand_in_the_pointer_and_in_the_audit(repository: Path) -> None:
    before = json.loads((repository / POINTER_FILE).read_text())
    assert not before.keys() & {"shadow", "canary"}
    set_shadow(repository, "2", why="new features")
    set_canary(repository, "2", 0.05, by="ann")
    pointer = read_pointer(repository)
    assert (pointer.version, pointer.shadow) == ("1", "2")
    assert pointer.canary is not None
    assert (pointer.canary.version, pointer.canary.share) == ("2", 0.05)
    assert pointer.trials == ("2", "2")
    shadow, canary = read_audit(repository)[-2:]
    assert (shadow["action"], shadow["why"], shadow["to"]["shadow"]) == (
        "shadow", "new features", "2",
    )  # fmt: skip
    assert (canary["by"], canary["to"]["canary"]) == ("ann", {"version": "2", "share": 0.05})
    set_shadow(repository, None)
    set_canary(repository, None)
    assert json.loads((repository / POINTER_FILE).read_text()) == before


def test_publishing_ends_trials_and_thresholds_do_not(repository: Path) -> None:
    set_shadow(repository, "2")
    set_canary(repository, "2", 0.1)
    set_policy(repository, 0.3, 0.9)
    assert read_pointer(repository).trials == ("2", "2")
    set_live_version(repository, "2")
    assert read_pointer(repository).trials == ()


@pytest.mark.parametrize(
    ("version", "share", "why"),
    [
        ("1", 0.1, "is the live one"),
        ("9", 0.1, "no model version '9'"),
        ("3", 0.1, "label delay of 3 days"),
        ("2", 0.0, "must lie above 0"),
        ("2", 0.6, "at most at 0.5"),
    ],
)
def test_what_cannot_be_tried_is_refused(
    repository: Path, version: str, share: float, why: str
) -> None:
    with pytest.raises(ConfigurationError, match=why):
        set_canary(repository, version, share)
    if version != "2":
        with pytest.raises(ConfigurationError, match=why):
            set_shadow(repository, version)
    assert read_pointer(repository).trials == ()


def test_a_door_ends_its_own_canary_and_no_other(repository: Path) -> None:
    set_canary(repository, "2", 0.1)
    mine = read_pointer(repository).canary
    assert mine is not None
    assert not end_canary(repository, replace(mine, share=0.2), why="x", by="streamer 0")
    assert end_canary(repository, mine, why="it flags 9 %", by="streamer 0")
    assert read_pointer(repository).canary is None
    assert read_audit(repository)[-1]["action"] == "canary stop"
    assert not end_canary(repository, mine, why="again", by="streamer 1")


def test_a_door_that_cannot_change_the_pointer_says_that_it_stopped_alone(
    repository: Path, caplog: pytest.LogCaptureFixture
) -> None:
    set_canary(repository, "2", 0.1)
    mine = read_pointer(repository).canary
    assert mine is not None
    (repository / "live.json").write_text("{")
    assert not end_canary(repository, mine, why="it flags 9 %", by="streamer 0")
    assert "off here only" in caplog.text


def test_followers_hear_of_each_change_once(repository: Path) -> None:
    now = [0.0]
    refused: set[str] = set()

    def check(model: ModelVersion) -> None:
        if model.version in refused:
            raise ConfigurationError("Triton does not serve it")

    follower = TrialsFollower(repository, check, clock_s=lambda: now[0])

    def changed() -> Trials | None:
        now[0] += FOLLOW_INTERVAL_S
        return follower.changed()

    assert changed() == Trials()
    assert changed() is None
    set_shadow(repository, "2")
    assert follower.changed() is None  # too soon
    found = changed()
    assert found is not None
    assert found.shadow is not None
    assert (found.shadow.version, found.canary) == ("2", None)
    set_policy(repository, 0.2, 0.7, version="2")
    found = changed()  # a candidate's thresholds count, too
    assert found is not None
    assert found.shadow is not None
    assert found.shadow.policy.review_threshold == 0.2
    refused.add("2")
    set_canary(repository, "2", 0.1)
    assert changed() == Trials()
    assert changed() is None
    refused.clear()  # Triton has loaded it by now
    assert changed() is None
    now[0] += RETRY_INTERVAL_S
    found = changed()
    assert found is not None
    assert found.canary is not None
    assert changed() is None


def test_a_refusal_is_told_once_and_tried_again_later(caplog: pytest.LogCaptureFixture) -> None:
    attempts = Attempts("compared")
    seen = ("1", "2")

    def told(reason: str) -> int:
        before = attempts.is_refused
        attempts.refuse("2", ConfigurationError(reason))
        assert (before, attempts.is_refused) == (False, True)  # none is, once all are due
        return caplog.text.count("Version 2 is not compared: ")

    assert attempts.are_due(seen, 0.0)
    assert not attempts.are_due(seen, 10 * RETRY_INTERVAL_S)  # it was good
    assert told("gone") == 1
    assert not attempts.are_due(seen, RETRY_INTERVAL_S / 2)
    assert attempts.are_due(seen, RETRY_INTERVAL_S)
    assert told("gone") == 1
    assert attempts.are_due(("1", None), RETRY_INTERVAL_S)  # a change does not wait
    assert attempts.are_due(seen, RETRY_INTERVAL_S)
    assert told("gone") == 2  # it was off in between
    assert attempts.are_due(seen, 2 * RETRY_INTERVAL_S)
    assert told("damaged") == 3


@pytest.mark.parametrize("share", [0.01, 0.05, 0.5])
def test_the_share_of_customers_is_met_and_stays_the_same(share: float) -> None:
    chosen = Canary("2", share).chosen(KEYS)
    assert chosen.mean() == pytest.approx(share, rel=0.1)
    assert (chosen == Canary("2", share, "later").chosen(KEYS)).all()
    grown = Canary("2", min(0.5, 2 * share)).chosen(KEYS)
    assert grown[chosen].all()  # more customers, the same ones among them
    other = Canary("3", share).chosen(KEYS)
    assert (other & chosen).mean() == pytest.approx(share * share, rel=0.5)


def test_the_guard_stops_what_flags_otherwise_than_chance_would() -> None:
    def reason(live: tuple[int, int], candidate: tuple[int, int]) -> str | None:
        guard = CanaryGuard()
        guard.note_decisions(candidate=False, decided=live[0], flagged=live[1])
        guard.note_decisions(candidate=True, decided=candidate[0], flagged=candidate[1])
        return guard.stop_reason()

    assert reason((20_000, 200), (1_000, 10)) is None
    assert reason((20_000, 200), (999, 999)) is None  # too few to say
    assert reason((20_000, 200), (1_000, 22)) is None  # over twice, but chance may be
    assert "flags 4.00%, the live version 1.00%" in str(reason((20_000, 200), (1_000, 40)))
    assert reason((20_000, 200), (10_000, 15)) is not None  # flags almost nothing
    assert reason((20_000, 0), (10_000, 0)) is None


def test_the_guard_stops_what_fails_or_is_slow() -> None:
    guard = CanaryGuard()
    for _ in range(30):
        guard.note_request(failed=True)
    assert guard.stop_reason() is None  # too few to say
    for _ in range(10):
        guard.note_request(failed=False)
    assert "30 of its last 40 requests" in str(guard.stop_reason())
    for _ in range(200):
        guard.note_request(failed=False)
    assert guard.stop_reason() is None


def test_the_guard_forgets_the_distant_past() -> None:
    guard = CanaryGuard()
    guard.note_decisions(candidate=False, decided=1_000_000, flagged=10_000)
    for _ in range(200):
        guard.note_decisions(candidate=True, decided=10_000, flagged=100)
    assert guard.stop_reason() is None
    for _ in range(10):
        guard.note_decisions(candidate=True, decided=10_000, flagged=1_000)
    assert guard.stop_reason() is not None


def test_codes_of_another_contract_are_those_that_its_engine_computes() -> None:
    words = ["EUR", "pos", "5732", "DE", "CHF", "ecom"]
    rng = np.random.default_rng(1)
    contracts = [
        FeatureContract({f: tuple(rng.permutation(words)[:n]) for f in CATEGORY_FIELDS})
        for n in (4, 0, 6)
    ]
    n = 50
    known = np.array([0, 7, *map(key_of, words)], dtype=np.uint64)  # absent, unheard of, words
    numbers = np.arange(1, n + 1)
    batch = TransactionBatch(
        numbers.astype(np.uint64),
        (numbers % 5 + 1).astype(np.uint64),
        (numbers % 3 + 1).astype(np.uint64),
        1_767_225_600_000 + numbers.astype(np.int64) * 1000,
        rng.random(n) * 100,
        rng.choice(known, size=(n, 4)),
    )
    rows = [FeatureEngine(contract).process(batch).rows for contract in contracts]
    for old in rows:
        for contract, new in zip(contracts, rows, strict=True):
            written = CategoryCodes(contract).written(old, batch.category_keys)
            np.testing.assert_array_equal(written, new)
