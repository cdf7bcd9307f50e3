"""Lists and rules beside the model: what they decide, what a bad file says, and the live file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flagger.errors import ConfigurationError
from flagger.features import CATEGORY_FIELDS, FEATURE_NAMES, TransactionBatch
from flagger.features.hashing import key_of
from flagger.live import FOLLOW_INTERVAL_S
from flagger.live_rulebook import RETRY_REFUSED_S, LiveRulebook
from flagger.overrules import Overruler, keys_of, merged_reasons
from flagger.policy import DECISIONS
from flagger.reasons import Reason
from flagger.rulebook import Rulebook, load_rulebook

GOOD = """
version = "7"
[[list]]
name = "stolen"
action = "deny"
field = "customer_id"
values = ["c-stolen", "c-both"]
reason = "reported stolen"
[[list]]
name = "staff"
action = "allow"
field = "customer_id"
values = ["c-staff", "c-both"]
[[list]]
name = "watched"
action = "watch"
field = "country"
values = ["XX"]
[[rule]]
name = "large abroad"
decision = "decline"
reason = "far away"
when = [{ feature = "amount", at_least = 500 }, { field = "country", none_of = ["DE"] }]
[[rule]]
name = "many"
decision = "review"
when = [{ feature = "customer_count_1h", at_least = 3, below = 10 }]
"""


def write(folder: Path, text: str = GOOD) -> Path:
    file = folder / "rules.toml"
    file.write_text(text)
    return file


def batch(*transactions: dict[str, Any]) -> tuple[TransactionBatch, np.ndarray[Any, Any]]:
    """Return transactions and their rows; `count` is the feature customer_count_1h."""
    n = len(transactions)
    rows = np.zeros((n, len(FEATURE_NAMES)), dtype=np.float32)
    rows[:, FEATURE_NAMES.index("customer_count_1h")] = [t.get("count", 0) for t in transactions]

    def keys(name: str, default: str) -> Any:
        values = [t.get(name, default) for t in transactions]
        return np.array([key_of(v) if v else 0 for v in values], dtype=np.uint64)

    categories = [keys(name, "DE" if name == "country" else "") for name in CATEGORY_FIELDS]
    made = TransactionBatch(
        transaction_key=np.arange(1, n + 1, dtype=np.uint64),
        customer_key=keys("customer_id", "c"),
        terminal_key=keys("terminal_id", "m"),
        event_time_ms=np.zeros(n, dtype=np.int64),
        amount=np.array([t.get("amount", 1.0) for t in transactions]),
        category_keys=np.ascontiguousarray(np.stack(categories, axis=1)),
    )
    return made, rows


LARGE_WATCHED = ["large abroad", "watched"]
LARGE = "rule large abroad, condition"


@pytest.mark.parametrize(
    ("transaction", "model", "decision", "source", "entries"),
    [
        ({}, "approve", None, None, []),
        ({}, "decline", None, None, []),
        ({"customer_id": "c-stolen"}, "approve", "decline", "list", ["stolen"]),
        ({"customer_id": "c-stolen"}, "decline", "decline", "list", ["stolen"]),
        ({"customer_id": "c-staff"}, "approve", None, None, []),
        ({"customer_id": "c-staff"}, "decline", "approve", "list", ["staff"]),
        ({"customer_id": "c-both"}, "approve", "decline", "list", ["stolen"]),
        ({"country": "XX"}, "approve", "review", "list", ["watched"]),
        ({"country": "XX"}, "review", "review", "", ["watched"]),
        ({"country": "XX"}, "decline", "decline", "", ["watched"]),
        ({"country": "XX", "amount": 500}, "approve", "decline", "rules", LARGE_WATCHED),
        ({"country": "XX", "count": 3}, "approve", "review", "rules", ["many", "watched"]),
        ({"country": None, "amount": 500}, "approve", "decline", "rules", ["large abroad"]),
        ({"country": "FR", "amount": 499.99}, "approve", None, None, []),
        ({"country": "DE", "amount": 500}, "approve", None, None, []),
        ({"count": 9}, "approve", "review", "rules", ["many"]),
        ({"count": 10}, "approve", None, None, []),
        ({"count": 9}, "decline", "decline", "", ["many"]),
        ({"count": float("nan")}, "approve", None, None, []),
        ({"customer_id": "c-staff", "count": 9}, "approve", "approve", "list", ["staff"]),
        ({"customer_id": "c-stolen", "count": 9}, "approve", "decline", "list", ["many", "stolen"]),
    ],
)  # fmt: skip
def test_what_lists_and_rules_decide(
    transaction: dict[str, Any],
    model: str,
    decision: str | None,
    source: str | None,
    entries: list[str],
    tmp_path: Path,
) -> None:
    overruler = Overruler(load_rulebook(write(tmp_path)))
    transactions, rows = batch(transaction)
    codes = np.array([DECISIONS.index(model)], dtype=np.uint8)
    found = overruler.judge(transactions, rows, codes).get(0)
    if decision is None:
        assert found is None
    else:
        assert found is not None
        assert (DECISIONS[found.code], found.source, found.entries) == (decision, source, entries)
        assert len(found.reasons) == len(entries)
        assert all(overruler.rulebook.version in reason.text for reason in found.reasons)
    assert codes.tolist() == [DECISIONS.index(model)]  # the caller's are not touched


def test_whoever_decided_speaks_first(tmp_path: Path) -> None:
    overruler = Overruler(load_rulebook(write(tmp_path)))
    transactions, rows = batch(
        {"customer_id": "c-stolen"}, {"count": 5}, {"customer_id": "c-staff"}
    )
    found = overruler.judge(transactions, rows, np.array([1, 2, 2], dtype=np.uint8))
    model = [Reason("score", "fraud score 0.6 reaches the review threshold 0.5")]
    assert [r.code for r in merged_reasons(found[0], model)] == ["list", "score"]
    assert [r.code for r in merged_reasons(found[1], model)] == ["score", "rule"]
    assert [r.code for r in merged_reasons(found[2], model)] == ["list"]
    assert found[0].reasons[0].text.startswith("list stolen: reported stolen (version 7-")


CHOICES = st.fixed_dictionaries(
    {
        "customer_id": st.sampled_from(["c", "c-stolen", "c-staff", "c-both"]),
        "country": st.sampled_from(["DE", "XX", "FR", None]),
        "amount": st.sampled_from([1.0, 499.99, 500.0]),
        "count": st.sampled_from([0, 3, 9, 10, float("nan")]),
        "code": st.integers(0, 2),
    }
)


@given(st.lists(CHOICES, min_size=1, max_size=30))
def test_a_batch_decides_like_one_at_a_time(chosen: list[dict[str, Any]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        overruler = Overruler(load_rulebook(write(Path(folder))))
    codes = np.array([c["code"] for c in chosen], dtype=np.uint8)
    whole = overruler.judge(*batch(*chosen), codes)
    for i, one in enumerate(chosen):
        assert overruler.judge(*batch(one), codes[i : i + 1]).get(0) == whole.get(i)


def test_rules_on_features_do_not_hold_where_the_history_is_not_known(tmp_path: Path) -> None:
    overruler = Overruler(load_rulebook(write(tmp_path)))
    transactions, _ = batch(
        {"count": 5}, {"customer_id": "c-stolen"}, {"amount": 900, "country": "FR"}
    )
    found = overruler.judge(transactions, None, np.zeros(3, dtype=np.uint8))
    assert {row: found[row].entries for row in found} == {1: ["stolen"], 2: ["large abroad"]}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (('version = "7"', ""), ["version"]),
        (('version = "7"', 'version = "7'), ["line 2"]),
        (('action = "deny"', 'action = "block"'), ["list 1 (stolen), action", "block"]),
        (('field = "customer_id"', 'field = "customer"'), ["list stolen", "no field customer"]),
        (('values = ["XX"]', "values = []"), ["list watched", "0 values"]),
        (('values = ["XX"]', 'values = ["XX", ""]'), ["list watched", "none of them empty"]),
        (('values = ["XX"]', 'values = ["XX"]\nhashed = true'), ["value 1", "flagger rules key"]),
        (('values = ["XX"]', 'values_file = "none.txt"'), ["list watched", "none.txt"]),
        (('reason = "far away"', 'reasons = "far away"'), ["rule 1 (large abroad)", "reasons"]),
        (('decision = "review"', 'decision = "approve"'), ["rule 2 (many), decision", "approve"]),
        (("customer_count_1h", "customer_count_2h"), ["rule many, condition 1", "count_2h"]),
        ((", at_least = 3, below = 10", ""), ["rule many, condition 1"]),
        (("at_least = 500", 'any_of = ["x"]'), [f"{LARGE} 1", "at_least or"]),
        (("none_of", "at_least = 1, none_of"), [f"{LARGE} 2"]),
        (('name = "many"', 'name = "staff"'), ["twice: staff"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(change: tuple[str, str], words: list[str], tmp_path: Path) -> None:
    assert change[0] in GOOD
    with pytest.raises(ConfigurationError) as caught:
        load_rulebook(write(tmp_path, GOOD.replace(*change)))
    for word in words:
        assert word in str(caught.value)


def test_lists_from_files_and_by_keys(tmp_path: Path) -> None:
    ids = [f"tok-{number}-ü" for number in range(1_000)]
    (tmp_path / "ids.txt").write_text("\n".join(ids[:500]) + "\n\n")
    (tmp_path / "keys.txt").write_text("\n".join(f"{key_of(i):016x}" for i in ids[500:]))
    head = 'version = "1"\n'
    for name, more in (("ids", ""), ("keys", "hashed = true\n")):
        head += f'[[list]]\nname = "{name}"\naction = "deny"\nfield = "customer_id"\n'
        head += f'values_file = "{name}.txt"\n{more}'
    overruler = Overruler(load_rulebook(write(tmp_path, head)))
    transactions, rows = batch(*({"customer_id": one} for one in (*ids, "tok-1", "other")))
    found = overruler.judge(transactions, rows, np.zeros(1_002, dtype=np.uint8))
    assert sorted(found) == list(range(1_000))
    assert keys_of(ids).tolist() == [key_of(one) for one in ids]


def test_no_lists_and_no_rules() -> None:
    assert not Overruler(Rulebook())


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_the_live_file_is_followed_and_a_bad_one_refused(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock = Clock()
    listed = tmp_path / "ids.txt"
    listed.write_text("c1\n")
    text = GOOD.replace('values = ["XX"]', 'values = ["XX"]\nvalues_file = "ids.txt"')
    live = LiveRulebook(write(tmp_path, text), clock_s=clock)
    first = live.current.rulebook.version
    assert not live.refresh()  # too early to look

    clock.now_s += FOLLOW_INTERVAL_S
    assert not live.refresh()  # nothing is new
    listed.write_text("c1\nc2\n")
    clock.now_s += FOLLOW_INTERVAL_S
    assert live.refresh()  # a list's file is part of the version
    second = live.current.rulebook.version
    assert first != second

    write(tmp_path, text.replace("at_least = 500", "at_most = 500"))
    for _ in range(3):
        clock.now_s += RETRY_REFUSED_S
        assert not live.refresh()
    assert "rule 1 (large abroad)" in live.refusal
    assert live.current.rulebook.version == second
    assert len([r for r in caplog.records if "stay at version" in r.message]) == 1

    write(tmp_path, text.replace('version = "7"', 'version = "8"'))
    clock.now_s += RETRY_REFUSED_S
    assert live.refresh()
    assert live.refusal == ""
    assert live.current.rulebook.version.startswith("8-")
    (tmp_path / "rules.toml").unlink()
    clock.now_s += FOLLOW_INTERVAL_S
    assert not live.refresh()
    assert live.current.rulebook.version.startswith("8-")


def test_a_door_does_not_start_with_a_bad_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"none\.toml"):
        LiveRulebook(tmp_path / "none.toml")
