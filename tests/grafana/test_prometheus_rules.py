"""Prometheus's own tools accept our files, and each alert fires when, and only when, it should."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from grafana.binaries import find_binary
from grafana.generate import boards_as_objects

DOCUMENT = Path(__file__).parents[2] / "docs" / "monitoring.md"


def run(*command: str | Path, folder: Path) -> str:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def alerts(folder: Path) -> list[dict[str, Any]]:
    groups = yaml.safe_load((folder / "rules" / "alerts.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def test_configuration_and_rules_are_valid(promtool: Path, prometheus_files: Path) -> None:
    run(promtool, "check", "config", "--lint=all", "prometheus.yml", folder=prometheus_files)


def test_alertmanager_sends_each_severity_its_way(prometheus_files: Path) -> None:
    amtool = find_binary("amtool")
    run(amtool, "check-config", "alertmanager.yml", folder=prometheus_files)
    route = (amtool, "config", "routes", "test", "--config.file=alertmanager.yml")
    for labels, receiver in (
        (["alertname=FlaggerStreamLag", "severity=page"], "pager"),
        (["alertname=FlaggerDeadLetters", "severity=ticket"], "tickets"),
        (["alertname=FlaggerWatchdog", "severity=none"], "dead-mans-switch"),
    ):
        assert run(*route, *labels, folder=prometheus_files).strip() == receiver


@pytest.mark.parametrize("file", ["alerts_test.yml", "slow_alerts_test.yml"])
def test_alerts_fire_when_they_should(promtool: Path, prometheus_files: Path, file: str) -> None:
    run(promtool, "test", "rules", file, folder=prometheus_files / "tests")


def test_a_deploy_is_marked_once_and_an_outage_is_none(promtool: Path, tmp_path: Path) -> None:
    """promtool asks the boards' own query once a minute, as Grafana does."""
    (query,) = {
        annotation["expr"]
        for board in boards_as_objects().values()
        for annotation in board["annotations"]["list"]
        if annotation["name"] == "Deploys"
    }
    series = {
        # Build a from minute 1; b in two steps from 90 on, back to a at 100; from 180 on away for
        # five minutes, and back as it was.
        ("0", "a"): "_ 1x88 stale _x9 1x79 stale _x4 1x60",
        ("1", "a"): "_ 1x93 stale _x4 1x79 stale _x4 1x60",
        ("0", "b"): "_x90 1x9 stale",
        ("1", "b"): "_x95 1x4 stale",
    }
    build = 'flagger_build_info{{job="flagger-streamer",instance="{}",version="1",revision="{}"}}'
    marks = {1: "a", 90: "b", 100: "a"}
    case = {
        "interval": "1m",
        "input_series": [
            {"series": build.format(*labels), "values": values} for labels, values in series.items()
        ],
        "promql_expr_test": [
            {
                "expr": query,
                "eval_time": f"{minute}m",
                "exp_samples": [
                    {
                        "labels": '{job="flagger-streamer",version="1",'
                        f'revision="{marks[minute]}"}}',
                        "value": 1,
                    }
                ]
                if minute in marks
                else [],
            }
            for minute in range(200)
        ],
    }
    (tmp_path / "deploys_test.yml").write_text(yaml.safe_dump({"tests": [case]}))
    run(promtool, "test", "rules", "deploys_test.yml", folder=tmp_path)


def test_every_alert_is_tested_in_both_directions(prometheus_files: Path) -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for file in (prometheus_files / "tests").glob("*.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case["promql_expr_test"]:
                found = re.search(r'alertname="(\w+)"', check["expr"])
                assert found
                (fires if check["exp_samples"] else silent).add(found[1])
    names = {rule["alert"] for rule in alerts(prometheus_files)}
    assert fires == names
    assert silent == names - {"FlaggerWatchdog"}  # it always fires


def test_every_alert_has_its_words_and_a_runbook(prometheus_files: Path) -> None:
    headings = re.findall(r"^### (\w+)$", DOCUMENT.read_text(), re.MULTILINE)
    rules = alerts(prometheus_files)
    for rule in rules:
        assert rule["labels"]["severity"] in {"page", "ticket", "none"}
        assert rule["annotations"].keys() == {"summary", "description", "runbook_url"}
        anchor = f"docs/monitoring.md#{rule['alert'].lower()}"
        assert rule["annotations"]["runbook_url"] == anchor
    assert headings == [rule["alert"] for rule in rules]
