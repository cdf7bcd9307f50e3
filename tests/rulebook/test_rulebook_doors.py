"""Lists and rules at both doors, as processes on the real stack: one verdict, followed live."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from confluent_kafka import Producer

from deploy.local.server import free_ports
from deploy.local.stack import LocalStack
from flagger.alert import Alert
from flagger.kafka import producer_config
from flagger.models import live_version, load_version
from flagger.settings import Settings
from flagger.wire.messages import Decision
from loadtest.observe import metric_values
from loadtest.own_topics import own_topic_names
from loadtest.processes import FlaggerProcess, environment_of, wait_for_url
from loadtest.topic_reader import read_topic
from streamer.topics import ensure_topics

pytestmark = [pytest.mark.stack, pytest.mark.timeout(150)]

STREAM_DATABASE, GATEWAY_DATABASE = 14, 15
RULES = """
version = "first"
[[list]]
name = "stolen"
action = "deny"
field = "customer_id"
values = ["c-stolen"]
reason = "reported stolen"
[[list]]
name = "staff"
action = "allow"
field = "customer_id"
values = ["c-staff"]
[[list]]
name = "watched country"
action = "watch"
field = "country"
values = ["XX"]
[[rule]]
name = "very large"
decision = "decline"
when = [{ feature = "amount", at_least = 50_000 }]
[[rule]]
name = "third within the hour"
decision = "review"
when = [{ feature = "customer_count_1h", at_least = 2 }, { field = "channel", any_of = ["ecom"] }]
"""


def wait_until(done: Callable[[], bool], timeout_s: float = 40.0) -> None:
    deadline_s = time.monotonic() + timeout_s
    while not done():
        assert time.monotonic() < deadline_s, "it did not happen in time"
        time.sleep(0.1)


class Doors:
    """A streamer and a gateway that follow the same file, each with a log of its own."""

    def __init__(self, settings: Settings, rules: Path, folder: Path) -> None:
        self.rules = rules
        self.settings = settings
        base = (settings.valkey_url or "").rsplit("/", 1)[0]
        more = {"FLAGGER_RULEBOOK": str(rules), "FLAGGER_GATEWAY_AUTH": "off"}
        more |= {"FLAGGER_GATEWAY_DEADLINE_MS": "2000"}  # a busy build machine
        ensure_topics(settings)
        gateways = settings.model_copy(
            update={"transactions_topic": f"{settings.transactions_topic}-2"}
        )
        ensure_topics(gateways)
        port, metrics_port = free_ports(2)
        self.metrics = f"http://127.0.0.1:{metrics_port}/metrics"
        stream = environment_of(settings, more) | {
            "FLAGGER_VALKEY_URL": f"{base}/{STREAM_DATABASE}"
        }
        gateway = environment_of(settings, more) | {
            "FLAGGER_VALKEY_URL": f"{base}/{GATEWAY_DATABASE}",
            "FLAGGER_TRANSACTIONS_TOPIC": gateways.transactions_topic,
        }
        self.log = folder / "stream.log"
        command = ["stream", "--metrics-port", str(metrics_port)]
        self.processes = [FlaggerProcess(command, stream, self.log)]
        command = ["gateway", "--port", str(port)]
        self.processes.append(FlaggerProcess(command, gateway, folder / "gateway.log"))
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10)
        self._producer = Producer(producer_config(settings))
        wait_for_url(f"http://127.0.0.1:{metrics_port}/readyz", self.processes[0])
        wait_for_url(f"http://127.0.0.1:{port}/readyz", self.processes[1])

    def stream(self, *transactions: dict[str, Any]) -> None:
        for one in transactions:
            value = msgspec.json.encode(one)
            self._producer.produce(self.settings.transactions_topic, value, b"k")
        assert self._producer.flush(30) == 0

    def streamed(self) -> dict[str, Decision]:
        values = read_topic(self.settings, self.settings.decisions_topic).values
        found = [msgspec.json.decode(value, type=Decision) for value in values]
        return {decision.transaction_id: decision for decision in found}

    def ask(self, one: dict[str, Any]) -> Decision:
        answer = self.client.post("/v1/score", json=one)
        assert answer.status_code == 200, answer.text
        return msgspec.convert(answer.json() | {"customer_id": "", "event_time": 0, "amount": 0.0,
            "model": "", "model_version": "", "policy_version": ""}, Decision)  # fmt: skip

    def close(self) -> None:
        for process in self.processes:
            process.kill()
        self.client.close()
        self._producer.close()


@pytest.fixture
def doors(stack: LocalStack, published: tuple[Path, str], tmp_path: Path) -> Iterator[Doors]:
    repository, _ = published
    load_version(repository, live_version(repository))
    names = own_topic_names("rulebook")
    changes = {"consumer_group": "group-rulebook", "partitions": 1, "model_repository": repository}
    rules = tmp_path / "rules.toml"
    rules.write_text(RULES)
    made = Doors(stack.settings().model_copy(update=names | changes), rules, tmp_path)
    yield made
    made.close()


def transaction(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "transaction_id": f"t{number}",
        "event_time": time.time_ns() // 1_000_000,
        "customer_id": f"c-{number}",
        "terminal_id": "m1",
        "amount": 10.0,
        "channel": "pos",
        "country": "DE",
        **changes,
    }


def own(decision: Decision) -> list[tuple[str, str]]:
    """Return the reasons that lists and rules gave."""
    both = zip(decision.reason_codes, decision.reasons, strict=True)
    return [(code, text) for code, text in both if code in ("list", "rule")]


def test_both_doors_decide_alike_and_follow_the_file(doors: Doors) -> None:
    sent = [
        transaction(1),
        transaction(2, customer_id="c-stolen"),
        transaction(3, customer_id="c-staff", amount=60_000.0),
        transaction(4, country="XX"),
        transaction(5, amount=60_000.0),
        *(transaction(6 + i, customer_id="c-often", channel="ecom") for i in range(4)),
        transaction(10, country="XX", customer_id="c-stolen", amount=60_000.0),
    ]
    answers = {one["transaction_id"]: doors.ask(one) for one in sent}
    doors.stream(*sent)
    wait_until(lambda: len(doors.streamed()) == len(sent))
    streamed = doors.streamed()
    for name, answer in answers.items():
        there = streamed[name]
        here = (answer.decision, answer.decision_source, own(answer))
        assert here == (there.decision, there.decision_source, own(there)), name
        assert there.score is not None  # the model was asked beside them
    told = {name: (d.decision, d.decision_source) for name, d in streamed.items()}
    assert told["t2"] == ("decline", "list")
    assert told["t3"] == ("approve", "list")
    assert told["t4"][0] in ("review", "decline")
    assert told["t5"] == ("decline", "rules")
    assert told["t8"][0] in ("review", "decline")
    assert own(streamed["t6"]) == []
    assert [text.split(" (")[0] for _, text in own(streamed["t10"])] == [
        "rule very large",
        "list watched country",
        "list stolen: reported stolen",
    ]
    alerts = read_topic(doors.settings, doors.settings.alerts_topic).values
    flagged = {msgspec.json.decode(value, type=Alert).transaction_id for value in alerts}
    assert flagged == {name for name, d in streamed.items() if d.decision != "approve"}
    counted = metric_values(doors.metrics, "flagger_streamer_decided_total", "decision_source")
    sources = [d.decision_source for d in streamed.values()]
    assert {k: v for k, v in counted.items() if v} == {s: sources.count(s) for s in set(sources)}

    follow(doors)


def follow(doors: Doors) -> None:
    """Change the file, then break it, while both doors run."""
    doors.rules.write_text(RULES.replace("first", "second").replace("c-stolen", "c-other"))
    asked = iter(range(100, 1_000))

    def followed(customer: str, decision: str) -> bool:
        one = transaction(next(asked), customer_id=customer)
        doors.stream(one)
        answer = doors.ask(one)
        wait_until(lambda: one["transaction_id"] in doors.streamed())
        there = doors.streamed()[one["transaction_id"]]
        return (answer.decision_source, there.decision_source) == (decision, decision)

    wait_until(lambda: followed("c-other", "list"))
    assert followed("c-stolen", "model")
    doors.rules.write_text(RULES.replace("at_least", "at_most"))
    wait_until(lambda: all("at_most" in p.tail() for p in doors.processes))
    assert all("rule 1 (very large)" in process.tail() for process in doors.processes)
    assert followed("c-other", "list")
    for process in doors.processes:
        process.require_running()
