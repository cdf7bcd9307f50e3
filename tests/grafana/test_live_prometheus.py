"""Panels, rules and alerts on a real Prometheus and Alertmanager, which watch running services.

Each panel's query returns data, and each selector of each rule finds series: what promtool's tests
prove about numbers then holds for the names and labels that services really have. Where something
is wrong, the alert fires and arrives.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from flagger import __version__
from grafana.generate import boards_as_objects
from loadtest.monitoring_world import FIRING, MonitoringWorld
from loadtest.promql import selectors

pytestmark = [pytest.mark.stack, pytest.mark.timeout(120)]

RULES = Path(__file__).parents[2] / "grafana" / "prometheus" / "rules"
BOARDS = boards_as_objects()
METRIC = re.compile(r"\b(?:flagger_|nv_|process_)\w+")
"""Names as the services export them; names with colons are recording rules."""
ROUTES = {"page": "pager", "ticket": "tickets", "none": "dead-mans-switch"}
INHIBITED = {"FlaggerSloBurnMedium", "FlaggerSloBurnSlow"}
"""By FlaggerSloBurnFast, which fires for the same objective."""


def rules(key: str) -> list[dict[str, Any]]:
    """Return the rules of a kind, `alert` or `record`."""
    groups = [g for f in RULES.glob("*.yml") for g in yaml.safe_load(f.read_text())["groups"]]
    return [rule for group in groups for rule in group["rules"] if key in rule]


ALERTS = {rule["alert"]: rule for rule in rules("alert")}
EXPRESSIONS = [
    pytest.param(rule["expr"], id=rule[kind])
    for kind in ("alert", "record")
    for rule in rules(kind)
]


def firing(monitoring: MonitoringWorld) -> dict[str, str]:
    """Return the alerts that fire now, with their severities."""
    return {
        alert["labels"]["alertname"]: alert["labels"]["severity"]
        for alert in monitoring.ask("alerts")["alerts"]
        if alert["state"] == "firing"
    }


def told(monitoring: MonitoringWorld) -> Iterator[tuple[str, str]]:
    """Yield (receiver, alert) of everything that Alertmanager has sent."""
    for sent in monitoring.notifications:
        yield from ((sent.receiver, name) for name in sent.names)


def concrete(expr: str) -> str:
    """Return a board's query as Grafana sends it for all instances over a short while."""
    expr = expr.replace("$__rate_interval", "10s")
    return re.sub(r"\$(?:instance|decision)\b", ".*", expr)


def test_every_panel_returns_data(monitoring: MonitoringWorld) -> None:
    queries = {
        f"{name}: {panel['title']}: {target['expr']}": concrete(target["expr"])
        for name, board in BOARDS.items()
        for panel in board["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
        if "expr" in target  # SQL is tried in tests/review
    }
    assert len(queries) > 50

    def without_data() -> list[str]:
        for label in [label for label, expr in queries.items() if monitoring.query(expr)]:
            del queries[label]
        return list(queries)

    monitoring.wait_until_empty(without_data, "panels without data")


def test_every_name_and_label_in_a_query_exists(
    monitoring: MonitoringWorld, prometheus_files: Path
) -> None:
    """`or vector(0)` gives data to a misspelt name, too: names are looked up one by one."""
    text = json.dumps(BOARDS)
    text += "".join(path.read_text() for path in (prometheus_files / "rules").glob("*.yml"))
    names = set(METRIC.findall(text))
    assert len(names) > 40
    known = set(monitoring.ask("metadata"))
    series = set(monitoring.ask("label/__name__/values"))
    # A counter with labels has no series before its first event, but is announced.
    assert {
        name for name in names if name not in series and name.removesuffix("_total") not in known
    } == set()
    recorded = set(re.findall(r"\bflagger:\w+:\w+", text))
    monitoring.wait_until_empty(
        lambda: recorded - set(monitoring.ask("label/__name__/values")), "rules without data"
    )


def test_both_doors_count_the_scores_of_what_they_decide(monitoring: MonitoringWorld) -> None:
    """Each score of 0 to 1 is in a bucket; what the gateway's model decided is counted there."""

    def wrong() -> list[str]:
        found = []
        for door in ("streamer", "gateway"):
            counts = [
                monitoring.query(f"sum({name}) > 0")
                for name in (
                    f"flagger_{door}_score_count",
                    f'flagger_{door}_score_bucket{{le="1.0"}}',
                )
            ]
            if not all(counts) or counts[0][0]["value"][1] != counts[1][0]["value"][1]:
                found.append(door)
        same = monitoring.query(
            "flagger_gateway_score_count >= on(instance) "
            'sum by (instance) (flagger_gateway_decisions_total{decision_source="model"}) > 0'
        )
        return found if same else [*found, "as many scores as decisions"]

    monitoring.wait_until_empty(wrong, "scores")


def test_annotations_and_variables_are_queries_that_prometheus_takes(
    monitoring: MonitoringWorld,
) -> None:
    for board in BOARDS.values():
        for annotation in board["annotations"]["list"]:
            monitoring.query(annotation["expr"])
        for variable in board["templating"]["list"]:
            if variable["type"] == "query":
                found = re.fullmatch(r"label_values\((.+), (\w+)\)", variable["query"])
                assert found
                assert monitoring.query(f"count by ({found[2]}) ({found[1]})")


def test_the_version_that_a_door_begins_with_is_marked(monitoring: MonitoringWorld) -> None:
    """Both doors have just begun: each must give a mark of the last minutes."""
    (query,) = {
        annotation["expr"]
        for board in BOARDS.values()
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Model version begins"
    }
    now_s = time.time()
    marks = monitoring.ask(
        "query_range", query=query, start=str(now_s - 180), end=str(now_s), step="1"
    )["result"]
    assert {mark["metric"]["job"] for mark in marks} == {"flagger-streamer", "flagger-gateway"}
    assert all(mark["metric"]["version"] for mark in marks)


def test_the_build_that_a_service_begins_with_is_marked(monitoring: MonitoringWorld) -> None:
    """All have just begun, and Prometheus has never seen them before."""
    (query,) = {
        annotation["expr"]
        for board in BOARDS.values()
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Deploys"
    }
    services = {job for job in monitoring.jobs if job != "triton"}

    def unmarked() -> set[str]:
        now_s = time.time()
        marks = monitoring.ask(
            "query_range", query=query, start=str(now_s - 180), end=str(now_s), step="1"
        )["result"]
        assert {mark["metric"]["version"] for mark in marks} <= {__version__}
        return services - {mark["metric"]["job"] for mark in marks}

    monitoring.wait_until_empty(unmarked, "services without a mark")


def test_rules_are_evaluated_without_errors(monitoring: MonitoringWorld) -> None:
    found = [rule for group in monitoring.ask("rules")["groups"] for rule in group["rules"]]
    assert len(found) > 50
    monitoring.wait_until_empty(
        lambda: [
            rule["name"]
            for group in monitoring.ask("rules")["groups"]
            for rule in group["rules"]
            if rule["health"] != "ok"
        ],
        "rules that are not well",
    )


def test_what_is_wrong_fires(monitoring: MonitoringWorld) -> None:
    assert FIRING.keys() <= ALERTS.keys()
    monitoring.wait_until_empty(lambda: FIRING.keys() - firing(monitoring), "alerts do not fire")


@pytest.mark.parametrize("expr", EXPRESSIONS)
def test_every_selector_finds_series(monitoring: MonitoringWorld, expr: str) -> None:
    wanted = selectors(expr)
    assert wanted or expr.startswith("vector(")
    monitoring.wait_until_empty(
        lambda: [selector for selector in wanted if not monitoring.query(selector)],
        "selectors without series",
    )


@pytest.mark.parametrize(
    ("expr", "unknown"),
    [
        ("sum(flager_streamer_lag_messages) > 0", "flager_streamer_lag_messages"),
        ("sum(rate(nw_inference_count[5m])) > 0", "nw_inference_count"),
    ],
)
def test_a_name_that_is_no_metric_is_found(expr: str, unknown: str) -> None:
    with pytest.raises(ValueError, match=unknown):
        selectors(expr)


def test_a_misspelt_metric_or_label_has_no_series(monitoring: MonitoringWorld) -> None:
    right = "flagger_streamer_decided_total"
    monitoring.wait_until_empty(lambda: not monitoring.query(right), "no decisions")
    for wrong in (f"{right}s", f'{right}{{decison=~".+"}}', f'{right}{{decision="aprove"}}'):
        (selector,) = selectors(f"sum(rate({wrong}[5m])) > 0")
        assert selector == wrong
        assert monitoring.query(selector) == []


def test_each_severity_goes_its_way(monitoring: MonitoringWorld) -> None:
    expected = {(ROUTES[ALERTS[n]["labels"]["severity"]], n) for n in FIRING.keys() - INHIBITED}
    monitoring.wait_until_empty(lambda: expected - set(told(monitoring)), "nobody was told")
    for receiver, name in told(monitoring):
        assert receiver == ROUTES[ALERTS[name]["labels"]["severity"]]


def test_who_pages_for_a_fast_burn_says_nothing_of_the_slow_ones(
    monitoring: MonitoringWorld,
) -> None:
    fast = ("pager", "FlaggerSloBurnFast")
    monitoring.wait_until_empty(lambda: {fast} - set(told(monitoring)), "nobody was told")
    assert firing(monitoring).keys() >= INHIBITED
    of_stream = {
        alert["labels"]["alertname"]
        for sent in monitoring.notifications
        for alert in sent.body["alerts"]
        if alert["labels"].get("slo") == "stream"
    }
    assert of_stream == {"FlaggerSloBurnFast"}


def test_two_doors_with_one_trouble_are_one_message(monitoring: MonitoringWorld) -> None:
    name = "FlaggerRulebookRefused"
    monitoring.wait_until_empty(
        lambda: {("tickets", name)} - set(told(monitoring)), "nobody was told"
    )
    (first, *_) = (sent for sent in monitoring.notifications if name in sent.names)
    assert first.body["groupLabels"] == {"alertname": name}
    assert len({alert["labels"]["instance"] for alert in first.body["alerts"]}) == 2


def test_a_message_has_its_words_filled_in(monitoring: MonitoringWorld) -> None:
    name = "FlaggerDeadLetters"
    monitoring.wait_until_empty(
        lambda: {("tickets", name)} - set(told(monitoring)), "nobody was told"
    )
    (alert, *_) = (
        alert
        for sent in monitoring.notifications
        for alert in sent.body["alerts"]
        if alert["labels"]["alertname"] == name
    )
    assert re.match(r"About [\d.]+ messages of the last", alert["annotations"]["description"])
    assert alert["annotations"]["runbook_url"] == f"docs/monitoring.md#{name.lower()}"
