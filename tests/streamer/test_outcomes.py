"""Every message has one outcome: a decision, a forwarded decision or a dead letter."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence

import msgspec
import numpy as np
import pytest
from prometheus_client import generate_latest

from flagger.features.hashing import key_of
from flagger.wire.messages import Decision
from loadtest.stream_world import START_MS, StreamWorld, message
from loadtest.topic_reader import read_topic
from streamer.dead_letters import read_dead_letters, send_again
from streamer.metrics import StreamerMetrics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]


def test_every_message_has_one_outcome(stream_world: StreamWorld) -> None:
    bad = [
        b"{not json",
        b"",
        None,  # a tombstone
        message(0).replace(b'"amount": 10.0', b'"amount": NaN'),
        message(0, amount=-1),
        message(0, amount=1e15),
        message(0, amount="12"),
        message(0, event_time="yesterday"),
        message(0, customer_id=None),
        message(0, schema_version=7),
        json.dumps({"transaction_id": "x"}).encode(),
        message(0, note="x" * 1_000_000),
        b"\xff\xfe" * 50,
    ]
    good = [message(i) for i in range(300)]
    repeats = [message(299), message(298)]
    mixed: list[bytes | None] = [*good[:100], *bad, *good[100:], *repeats]
    stream_world.send(mixed)
    metrics = stream_world.run_until(lambda _: len(stream_world.decided()) >= len(good))
    found = stream_world.check().decisions
    assert found.failures == []
    assert found.decided == len(good)
    assert metrics.duplicates._value.get() == len(repeats)

    letters = list(read_dead_letters(stream_world.settings))
    assert sorted(letter.value for letter in letters) == sorted(value or b"" for value in bad)
    for letter in letters:
        headers = letter.headers
        assert headers["source_topic"] == stream_world.settings.transactions_topic
        assert headers["error_class"] == "BadMessageError"
        assert headers["schema_version"] == "1"
        log = read_topic(stream_world.settings, headers["source_topic"])
        where = (log.partition == int(headers["source_partition"])) & (
            log.offset == int(headers["source_offset"])
        )
        assert log.values[int(np.flatnonzero(where)[0])] == letter.value
    reasons = {letter.headers["reason"] for letter in letters}
    assert any("amount: -1 is not between 0 and" in reason for reason in reasons)
    assert any("the limit is 65,536" in reason for reason in reasons)


def gateways(number: int, word: str, source: str, reasons: Sequence[str] = ()) -> Decision:
    """Return what the gateway decided about a message of customer c1."""
    return Decision(
        transaction_id=f"t{number}",
        customer_id="c1",
        event_time=START_MS,
        amount=5.0,
        decision=word,
        decision_source=source,
        reasons=list(reasons),
    )


def forwarded_message(number: int, decision: Decision) -> bytes:
    """Return the message that the gateway writes with its decision."""
    return message(number, customer_id="c1", decision=msgspec.to_builtins(decision))


def test_what_the_gateway_decided_is_forwarded_and_counted(stream_world: StreamWorld) -> None:
    decision = gateways(1, "review", "fallback", ["the model did not answer in time"])
    value = forwarded_message(1, decision)
    others = [message(22, customer_id="c1"), message(8, customer_id="c1")]
    stream_world.send([others[0], value, value, others[1]])
    metrics = stream_world.run_until(lambda _: len(stream_world.decided()) >= 3)
    assert metrics.forwarded_repeats._value.get() == metrics.duplicates._value.get() == 1
    first, forwarded, last = stream_world.decided()  # in the order of the log
    assert forwarded == decision
    assert [first.transaction_id, last.transaction_id] == ["t22", "t8"]
    assert decision in stream_world.alerts()
    with stream_world.store() as store:
        record = store.read("customer", np.array([key_of("c1")], dtype=np.uint64))
    assert int(record["count"][0]) == 3


def test_what_the_gateway_answered_is_gathered_until_somebody_waits_for_a_decision(
    stream_world: StreamWorld,
) -> None:
    seen: list[int] = []

    def done(metrics: StreamerMetrics) -> bool:
        if metrics.consumed._value.get() < 2:
            return False
        if not seen:
            time.sleep(1)  # a commit takes some milliseconds
            seen.append(len(stream_world.decided()))
            stream_world.send([message(3)])
        seen.append(len(stream_world.decided()))
        return seen[-1] > 0

    stream_world.send([forwarded_message(i, gateways(i, "approve", "model")) for i in (1, 2)])
    stream_world.run_until(done, latency_target_ms=10_000, state_flush_interval_ms=5_000)
    assert seen[0] == 0
    assert seen[-1] == 3  # they went out together


def test_of_two_doors_the_first_in_the_log_counts_and_the_other_is_seen(
    stream_world: StreamWorld,
) -> None:
    decision = gateways(1, "decline", "fallback", ["the model did not answer in time"])
    answered = forwarded_message(1, decision)
    stream_world.send([message(1, customer_id="c1"), answered, message(2), message(2)])
    metrics = stream_world.run_until(lambda seen: seen.duplicates._value.get() >= 2)
    assert metrics.forwarded_repeats._value.get() == 1  # of the two repeats
    decided = {found.transaction_id: found for found in stream_world.decided()}
    assert len(stream_world.decided()) == len(decided) == 2
    assert decided["t1"].decision_source == "model"


def test_a_bad_label_becomes_a_dead_letter(stream_world: StreamWorld) -> None:
    stream_world.send([b'{"is_fraud": 1}'], topic=stream_world.settings.labels_topic)
    stream_world.send([message(1)])
    dead_letters = stream_world.settings.dead_letter_topic
    stream_world.run_until(lambda _: len(read_topic(stream_world.settings, dead_letters)) == 1)
    (letter,) = read_dead_letters(stream_world.settings)
    assert letter.value == b'{"is_fraud": 1}'
    assert letter.headers["source_topic"] == stream_world.settings.labels_topic


def test_a_label_may_come_before_its_transaction(stream_world: StreamWorld) -> None:
    """It counts once the stream has come to its transaction's time, as in a replay."""
    label = {
        "transaction_id": "t1",
        "is_fraud": True,
        "source": "api",
        "labelled_at": START_MS,
        "terminal_id": "m1",
        "event_time": START_MS + 1_000,
    }
    stream_world.send([json.dumps(label).encode()], topic=stream_world.settings.labels_topic)
    stream_world.send([message(0)])
    stream_world.run_until(
        lambda seen: len(stream_world.decided()) == 1 and seen.waiting_entries._value.get() == 1
    )
    with stream_world.store() as store:
        assert store.read_all("terminal")["frauds"].sum() == 0
    month_later_ms = START_MS + 30 * 86_400_000
    after = [message(i, event_time=month_later_ms + i * 1_000, terminal_id="m1") for i in (2, 3)]
    stream_world.send([message(1), *after])
    stream_world.run_until(lambda _: len(stream_world.decided()) == 4)
    with stream_world.store() as store:
        assert store.read_all("terminal")["frauds"].sum() == 1
    assert stream_world.check().decisions.failures == []


def test_a_planted_card_number_is_in_no_log_metric_or_reason(
    stream_world: StreamWorld, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    planted = "4111111111111111"
    ids = {f"{name}_id": f"{name}-{planted}" for name in ("transaction", "customer", "terminal")}
    bad = [
        message(0, **ids, amount=-1),
        message(0, **ids, amount=planted),
        message(0, **ids, amount=int(planted)),
        message(0, **ids, event_time=planted),
        message(0, **ids, event_time=int(planted)),
        message(0, **ids, currency=planted * 9),
        message(0, **ids | {"customer_id": planted * 20}),
        json.dumps({"customer_id": planted}).encode(),
        b'{"customer_id": "%b' % planted.encode(),
        planted.encode(),
    ]
    label = json.dumps({"transaction_id": planted, "is_fraud": planted}).encode()
    stream_world.send([label, planted.encode()], topic=stream_world.settings.labels_topic)
    stream_world.send([*bad, message(1, **ids), message(2)])
    dead_letters = stream_world.settings.dead_letter_topic
    n = len(bad) + 2
    metrics = stream_world.run_until(
        lambda _: (
            len(read_topic(stream_world.settings, dead_letters)) == n
            and len(stream_world.decided()) == 2
        )
    )
    letters = list(read_dead_letters(stream_world.settings))
    assert sum(planted.encode() in letter.value for letter in letters) == n
    said = [text for letter in letters for text in letter.headers.values()]
    for text in (
        *said,
        caplog.text,
        *capfd.readouterr(),
        generate_latest(metrics.registry).decode(),
    ):
        assert planted not in text


def test_a_dead_letter_can_be_sent_again_once_its_cause_is_gone(stream_world: StreamWorld) -> None:
    hour_ms = 3_600_000
    early = message(1, event_time=int(time.time() * 1000) + 24 * hour_ms - hour_ms // 2)
    stream_world.send([early, message(2)])
    stream_world.run_until(lambda _: len(stream_world.decided()) == 1, clock_behind_ms=hour_ms)
    (letter,) = read_dead_letters(stream_world.settings)
    assert "more than a day in the future" in letter.headers["reason"]
    assert send_again(stream_world.settings, [letter]) == 1
    stream_world.run_until(lambda _: len(stream_world.decided()) == 2)
    assert sorted(decision.transaction_id for decision in stream_world.decided()) == ["t1", "t2"]
