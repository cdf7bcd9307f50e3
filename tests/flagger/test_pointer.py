"""The pointer: thresholds that change without a release, an audit of it, doors that follow."""

from __future__ import annotations

import errno
import json
import threading
from pathlib import Path

import pytest

from flagger.errors import ConfigurationError, FlaggerError
from flagger.features import CATEGORY_FIELDS, FeatureContract
from flagger.live import FOLLOW_INTERVAL_S, LiveModel
from flagger.models import (
    ModelVersion,
    file_sha256,
    live_version,
    load_version,
    set_live_version,
)
from flagger.pointer import AUDIT_FILE, MAX_POLICIES, read_audit, read_pointer
from flagger.policies import roll_back_policy, set_policy
from flagger.policy import Policy

CONTRACT = FeatureContract({field: ("EUR",) for field in CATEGORY_FIELDS})


def publish(repository: Path, version: str, contract: FeatureContract = CONTRACT) -> Path:
    folder = repository / "fraud_fil" / version
    folder.mkdir(parents=True)
    (folder / "contract.json").write_text(contract.to_json(), encoding="utf-8")
    (folder / "policy.json").write_text(json.dumps(Policy("p", 0.4, 0.8).to_dict()))
    sums = {p.relative_to(repository).as_posix(): file_sha256(p) for p in folder.iterdir()}
    (folder / "manifest.json").write_text(json.dumps({"artefacts": sums}))
    return folder


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Versions 1 and 2; 2 is live."""
    for version in ("1", "2"):
        publish(tmp_path, version)
        set_live_version(tmp_path, version, why="first")
    return tmp_path


def test_new_thresholds_are_a_new_policy_of_the_live_version(repository: Path) -> None:
    files = {p: p.read_bytes() for p in (repository / "fraud_fil").rglob("*") if p.is_file()}
    assert set_policy(repository, 0.3, 0.9, why="more analysts") == ("2", Policy("p.1", 0.3, 0.9))
    found = load_version(repository, "2")
    assert found.policy == Policy("p.1", 0.3, 0.9)
    assert found.own_policy == Policy("p", 0.4, 0.8)
    assert load_version(repository, "1").policy == Policy("p", 0.4, 0.8)
    assert files == {p: p.read_bytes() for p in files}  # no file of a version was touched


def test_thresholds_go_back_one_by_one_and_no_name_is_used_twice(repository: Path) -> None:
    set_policy(repository, 0.1, 0.9)
    set_policy(repository, 0.2, 0.9)
    assert roll_back_policy(repository)[1] == Policy("p.1", 0.1, 0.9)
    assert set_policy(repository, 0.3, 0.9)[1].version == "p.3"
    assert [roll_back_policy(repository)[1].version for _ in range(2)] == ["p.1", "p"]
    with pytest.raises(ConfigurationError, match="nothing to go back to"):
        roll_back_policy(repository)
    assert load_version(repository, "2").policy == Policy("p", 0.4, 0.8)


def test_rolling_a_model_back_brings_its_thresholds_back(repository: Path) -> None:
    set_policy(repository, 0.2, 0.9)
    publish(repository, "3")
    set_live_version(repository, "3")
    assert load_version(repository, "3").policy.version == "p"
    set_live_version(repository, "2", action="rollback")
    assert load_version(repository, live_version(repository)).policy == Policy("p.1", 0.2, 0.9)


@pytest.mark.parametrize(("review", "decline"), [(0.9, 0.5), (0.0, 0.5), (0.5, 1.5)])
def test_thresholds_out_of_order_change_nothing(
    repository: Path, review: float, decline: float
) -> None:
    before = (repository / "live.json").read_bytes(), (repository / AUDIT_FILE).read_bytes()
    with pytest.raises(ConfigurationError, match="thresholds"):
        set_policy(repository, review, decline)
    with pytest.raises(ConfigurationError, match="no model version '9'"):
        set_policy(repository, 0.1, 0.2, version="9")
    assert before == (
        (repository / "live.json").read_bytes(),
        (repository / AUDIT_FILE).read_bytes(),
    )


def test_the_audit_says_who_when_from_to_and_why(repository: Path) -> None:
    set_policy(repository, 0.3, 0.9, why="budget", by="ann")
    roll_back_policy(repository, why="too many", by="bob")
    first, second, change, back = read_audit(repository)
    assert first["from"] is None
    assert (second["from"], second["to"]) == (
        {"version": "1", "policy": None},
        {"version": "2", "policy": None},
    )
    assert (change["by"], change["action"], change["why"]) == ("ann", "policy set", "budget")
    assert change["from"]["review_threshold"] == 0.4
    assert change["to"]["review_threshold"] == 0.3
    assert change["to"]["thresholds_of"] == "2"
    assert (back["by"], back["to"]["policy_version"]) == ("bob", "p")
    assert first["by"]
    assert change["at"].endswith("+00:00")


def test_a_damaged_audit_line_is_named(repository: Path) -> None:
    with (repository / AUDIT_FILE).open("a") as file:
        file.write("{half\n")
    with pytest.raises(ConfigurationError, match="line 3 is not an audit record"):
        read_audit(repository)


def test_a_reason_may_hold_any_sign(repository: Path) -> None:
    why = "pasted\u2028from\u0085a page\nof notes"
    set_policy(repository, 0.3, 0.9, why=why)
    assert read_audit(repository)[-1]["why"] == why


def test_a_full_disk_changes_nothing_and_is_said(
    repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    before = (repository / "live.json").read_bytes(), (repository / AUDIT_FILE).read_bytes()
    monkeypatch.setattr("flagger.audit.os.fsync", full)
    with pytest.raises(ConfigurationError, match=r"cannot be changed.*No space.*free space"):
        set_policy(repository, 0.3, 0.9)
    monkeypatch.undo()
    after = (repository / "live.json").read_bytes(), (repository / AUDIT_FILE).read_bytes()
    assert after == before
    set_policy(repository, 0.3, 0.9)
    assert len(read_audit(repository)) == 3
    (repository / AUDIT_FILE).write_bytes(b"")  # as if the first line of all had not been written
    assert read_audit(repository) == []


def test_a_repository_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"nowhere cannot be changed.*path"):
        roll_back_policy(tmp_path / "nowhere")


def test_changes_at_the_same_time_are_all_kept(repository: Path) -> None:
    def change() -> None:
        for _ in range(5):
            set_policy(repository, 0.3, 0.9)

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    history = read_pointer(repository).policies_of("2")
    assert [p.version for p in history.policies] == [f"p.{n}" for n in range(1, 21)]
    assert len(read_audit(repository)) == 22


def test_the_pointer_stays_small(repository: Path) -> None:
    for _ in range(MAX_POLICIES + 3):
        set_policy(repository, 0.3, 0.9)
    history = read_pointer(repository).policies_of("2")
    assert len(history.policies) == MAX_POLICIES
    assert history.in_force == f"p.{MAX_POLICIES + 3}"
    for _ in range(MAX_POLICIES - 1):
        roll_back_policy(repository)
    with pytest.raises(ConfigurationError, match=r"Policy p\.3 .* too long ago.*policy set"):
        roll_back_policy(repository)
    assert load_version(repository, "2").policy.version == "p.4"  # still readable by every door


def test_tries_that_were_taken_back_do_not_push_out_what_is_in_force(repository: Path) -> None:
    set_policy(repository, 0.1, 0.9)
    for _ in range(MAX_POLICIES):
        set_policy(repository, 0.2, 0.9)
        assert roll_back_policy(repository) == ("2", Policy("p.1", 0.1, 0.9))
    set_policy(repository, 0.2, 0.9)
    assert load_version(repository, "2").policy.version == f"p.{MAX_POLICIES + 2}"


@pytest.mark.parametrize(
    "policies",
    ['{"2": {"in_force": "p.9", "set": []}}', '{"2": 1}', '{"2": {"in_force": null}}', "[]"],
)
def test_a_pointer_with_damaged_policies_is_refused(repository: Path, policies: str) -> None:
    pointer = json.loads((repository / "live.json").read_text())
    pointer["policies"] = json.loads(policies)
    (repository / "live.json").write_text(json.dumps(pointer))
    with pytest.raises(ConfigurationError, match="cannot be read as a pointer"):
        load_version(repository, "2")


class Door:
    """A door that follows, with a clock of its own."""

    def __init__(self, repository: Path) -> None:
        self.now_s = 0.0
        self.error: FlaggerError | None = None
        present = load_version(repository, live_version(repository))
        self.model = LiveModel(repository, present, self.check, clock_s=lambda: self.now_s)

    def check(self, model: ModelVersion) -> None:
        if self.error:
            raise self.error

    def look(self) -> ModelVersion | None:
        self.now_s += FOLLOW_INTERVAL_S
        return self.model.successor()


def test_a_door_follows_versions_and_thresholds_each_once(repository: Path) -> None:
    door = Door(repository)
    assert door.look() is None
    set_policy(repository, 0.3, 0.9)
    found = door.look()
    assert found is not None
    assert (found.version, found.policy.version) == ("2", "p.1")
    assert door.look() is None
    roll_back_policy(repository)
    found = door.look()
    assert found is not None
    assert found.policy.version == "p"
    set_live_version(repository, "1")
    found = door.look()
    assert found is not None
    assert found.version == "1"
    assert door.look() is None


def test_a_door_does_not_look_more_often_than_needed(repository: Path) -> None:
    door = Door(repository)
    set_policy(repository, 0.3, 0.9)
    door.now_s += FOLLOW_INTERVAL_S / 2
    assert door.model.successor() is None
    assert door.look() is not None


Damage = tuple[str, str]


def break_version(repository: Path, how: str) -> None:
    folder = publish(
        repository,
        "3",
        FeatureContract(CONTRACT.vocabularies, hash="0123456789abcdef")
        if how == "other features"
        else CONTRACT,
    )
    if how == "missing policy":
        (folder / "policy.json").unlink()
    if how == "tampered":
        (folder / "policy.json").write_text(json.dumps(Policy("p", 0.01, 0.02).to_dict()))
    if how == "no manifest entry":
        (folder / "manifest.json").write_text('{"artefacts": {}}')


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("other features", "trained on feature contract 0123456789abcdef"),
        ("missing policy", "policy.json is missing"),
        ("tampered", "was changed after it was published"),
        ("no manifest entry", "does not cover"),
    ],
)
def test_a_version_that_cannot_be_used_is_refused_and_the_live_one_stays(
    repository: Path, caplog: pytest.LogCaptureFixture, how: str, said: str
) -> None:
    door = Door(repository)
    break_version(repository, how)
    set_live_version(repository, "3")
    assert [door.look() for _ in range(3)] == [None] * 3
    (record,) = [r for r in caplog.records if r.levelname == "ERROR"]  # once, not every second
    assert said in record.getMessage()
    assert "Still asking version 2" in record.getMessage()


def test_a_version_that_is_not_served_yet_is_taken_later(repository: Path) -> None:
    door = Door(repository)
    set_live_version(repository, "1")
    door.error = ConfigurationError("Triton does not serve it.")
    assert door.look() is None
    door.error = None
    found = door.look()
    assert found is not None
    assert found.version == "1"
