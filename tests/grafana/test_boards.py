"""The committed dashboards are what the code makes, and each panel says what it shows."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from grafana_foundation_sdk.models.dashboard import Dashboard

from flagger import __version__
from flagger.settings import load_settings
from gateway.metrics import METRICS, GatewayMetrics
from grafana.board import TAG
from grafana.cli import grafana
from grafana.generate import DASHBOARDS, boards_as_objects, generate, rendered
from review.alerts.metrics import AlertMetrics
from review.metrics import DeskMetrics
from streamer.metrics import StreamerMetrics
from train.labels_metrics import LabelsMetrics

BOARDS = boards_as_objects()
SOURCES = (
    {"type": "prometheus", "uid": "${datasource}"},
    {"type": "grafana-postgresql-datasource", "uid": "${cases}"},
)
ROOT = Path(__file__).parents[2]
PROVISIONING = ROOT / "grafana" / "provisioning"


def panels(board: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield from (panel for panel in board["panels"] if panel["type"] != "row")


PANELS = [pytest.param(p, id=f"{n}:{p['title']}") for n, b in BOARDS.items() for p in panels(b)]


def test_committed_files_are_what_the_code_makes() -> None:
    committed = {path.name: path.read_text() for path in DASHBOARDS.glob("*.json")}
    assert committed == rendered(), "run `flagger grafana generate` and commit"


def test_check_finds_a_changed_and_a_stale_file(tmp_path: Path) -> None:
    generate(tmp_path)
    assert CliRunner().invoke(grafana, ["generate", "--check", "--out", str(tmp_path)]).output == ""
    (tmp_path / "system.json").write_text("{}")
    (tmp_path / "gone.json").write_text("{}")
    result = CliRunner().invoke(grafana, ["generate", "--check", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert "system.json" in result.output
    assert "gone.json" in result.output
    assert "latency.json" not in result.output
    CliRunner().invoke(grafana, ["generate", "--out", str(tmp_path)], catch_exceptions=False)
    assert {path.name for path in tmp_path.iterdir()} == set(rendered())


@pytest.mark.parametrize("panel", PANELS)
def test_panel_has_title_description_unit_and_queries(panel: dict[str, Any]) -> None:
    assert panel["title"]
    assert len(panel["description"]) > 20
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] in SOURCES
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert len(set(references)) == len(references)


@pytest.mark.parametrize("name", BOARDS)
def test_panels_lie_beside_each_other(name: str) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in BOARDS[name]["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", BOARDS)
def test_panels_have_ids_of_their_own(name: str) -> None:
    ids = [panel["id"] for panel in BOARDS[name]["panels"]]
    assert len(set(ids)) == len(ids)


def test_boards_link_to_each_other_and_keep_the_variables() -> None:
    uids = {board["uid"] for board in BOARDS.values()}
    assert len(uids) == len(BOARDS) == 5
    for board in BOARDS.values():
        assert TAG in board["tags"]
        (link,) = board["links"]
        assert (link["type"], link["tags"]) == ("dashboards", [TAG])
        assert link["includeVars"]
        assert link["keepTime"]
        assert {"datasource", "instance"} <= {v["name"] for v in board["templating"]["list"]}
        assert {a["name"] for a in board["annotations"]["list"]} == {
            "Restarts",
            "Deploys",
            "Model version begins",
        }


@pytest.mark.parametrize("name", BOARDS)
def test_used_variables_are_declared(name: str) -> None:
    text = json.dumps(BOARDS[name])
    used = set(re.findall(r"\$\{?([a-z]+)", text)) - {"__rate_interval"}
    assert used <= {variable["name"] for variable in BOARDS[name]["templating"]["list"]}


@pytest.mark.parametrize("name", BOARDS)
def test_the_sdk_reads_its_own_boards_back(name: str) -> None:
    again = Dashboard.from_json(BOARDS[name])
    assert again.uid == BOARDS[name]["uid"]
    assert len(again.panels or []) == len(BOARDS[name]["panels"])


def test_each_mark_says_what_it_marks() -> None:
    """Grafana fills the braces of `textFormat` from the labels of the query's result."""
    for board in BOARDS.values():
        for annotation in board["annotations"]["list"]:
            named = re.findall(r"{{(\w+)}}", annotation["textFormat"])
            assert "job" in named
            assert len(named) > 1


@pytest.mark.parametrize(
    "service", [StreamerMetrics, GatewayMetrics, AlertMetrics, DeskMetrics, LabelsMetrics]
)
@pytest.mark.parametrize(("variable", "shown"), [("4bba750", "4bba750"), ("", "unknown")])
def test_every_service_shows_its_build(
    service: Any, variable: str, shown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAGGER_REVISION", variable)
    build = {"version": __version__, "revision": shown}
    assert service().registry.get_sample_value("flagger_build_info", build) == 1
    load_settings()  # which refuses names that it does not know


def test_every_metric_of_ours_is_on_a_board() -> None:
    # Of the process's own metrics (process_*) the boards show some.
    names = {metric.name for metric in StreamerMetrics().registry.collect()}
    streamer = {name for name in names if not name.startswith("process_")}
    gateway = {spec.name.removesuffix("_total") for spec in METRICS}
    alerts = {metric.name for metric in AlertMetrics().registry.collect()}
    alerts = {name for name in alerts if not name.startswith("process_")}
    desk = {metric.name for metric in DeskMetrics().registry.collect()}
    desk = {name for name in desk if not name.startswith("process_")}
    labels = {metric.name for metric in LabelsMetrics().registry.collect()}
    labels = {name for name in labels if not name.startswith("process_")}
    text = json.dumps(BOARDS)
    named = streamer | gateway | alerts | desk | labels
    missing = {name for name in named if name not in text}
    assert missing == set()


def test_the_case_store_is_provisioned_and_its_password_a_secret() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "cases.yml").read_text())[
        "datasources"
    ]
    assert source["type"] == SOURCES[1]["type"]
    assert source["secureJsonData"] == {"password": "${CASES_PASSWORD}"}
    assert "password" not in source["jsonData"]


def test_provisioning_fits_the_boards() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yml").read_text())[
        "datasources"
    ]
    assert (source["type"], source["url"]) == ("prometheus", "${PROMETHEUS_URL}")
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "fraud-flagger.yml").read_text())[
        "providers"
    ]
    assert provider["type"] == "file"
    scrape = yaml.safe_load((ROOT / "grafana" / "prometheus" / "prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == scrape["global"]["scrape_interval"]
