"""What all boards have in common: variables, links to each other, annotations, refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    Panel,
    VariableOption,
    VariableRefresh,
    VariableSort,
)

from grafana.panels import DATASOURCE
from grafana.sql import CASES

__all__ = ["TAG", "make_board"]

TAG = "fraud-flagger"
"""Boards with this tag link to each other."""
_BUILDS = "group by (job, version, revision) ({}(flagger_build_info{}))"
_DEPLOYS = (
    f"{_BUILDS.format('', '')} unless {_BUILDS.format('', ' offset 1m')} "
    "unless on (job) ("
    f"count by (job) ({_BUILDS.format('last_over_time', '[1h]')}) == 1 "
    f"and on (job) {_BUILDS.format('last_over_time', '[1h] offset 1m')})"
)
"""A build begins. A job that was away and comes back as it was within an hour is none."""
_RESTARTS = (
    'changes(process_start_time_seconds{job=~"flagger-.*"}[1m]) > 0 '
    "or resets(flagger_streamer_consumed_total[1m]) > 0"
)
_SWITCHES = (
    "flagger_gateway_model_info unless flagger_gateway_model_info offset 1m "
    'or flagger_streamer_model_info{role="live"} unless flagger_streamer_model_info offset 1m'
)


def _variable(name: str, label: str, query: str) -> dashboard.QueryVariable:
    return (
        dashboard.QueryVariable(name)
        .label(label)
        .query(query)
        .datasource(DATASOURCE)
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .sort(VariableSort.ALPHABETICAL_ASC)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(VariableOption(selected=True, text="All", value="$__all"))
    )


class _Annotation(AnnotationQuery):
    """Has the text of its marks, a field that the SDK lacks: Grafana shows none without it."""

    text = ""

    def to_json(self) -> dict[str, object]:
        """Return what Grafana's Prometheus data source reads."""
        return {**super().to_json(), "textFormat": self.text}


class _Mark(dashboard.AnnotationQuery):
    """Marks on all panels where a query gives 1.

    Args:
        name: Of the switch that turns them off.
        expr: PromQL; Grafana asks for it once a minute of the board's time.
        text: Of a mark; `{{label}}` is replaced.
        colour: Of its line.
    """

    def __init__(self, name: str, expr: str, text: str, colour: str) -> None:
        super().__init__()
        self._internal = _Annotation()
        self._internal.text = text
        self.name(name).datasource(DATASOURCE).enable(True).icon_color(colour).expr(expr)


def make_board(
    uid: str,
    title: str,
    description: str,
    rows: Mapping[str, Sequence[Builder[Panel]]],
    *,
    variables: Mapping[str, tuple[str, str]] | None = None,
    cases: bool = False,
) -> Any:
    """Return a built dashboard.

    Args:
        uid: Part of its address in Grafana; it stays for ever.
        title: Its name.
        description: One sentence for the list of boards.
        rows: Title of a row -> its panels, filled from left to right.
        variables: Name -> (label, Grafana query) beside data source and instance.
        cases: The board asks the case store too.
    """
    board = (
        dashboard.Dashboard(title)
        .uid(uid)
        .description(description)
        .tags([TAG])
        .timezone("browser")
        .refresh("5s")
        .time("now-30m", "now")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            dashboard.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .with_variable(
            _variable("instance", "Instance", 'label_values(up{job=~"flagger-.*"}, instance)')
        )
        .link(
            dashboard.DashboardLink("Fraud Flagger")
            .type(DashboardLinkType.DASHBOARDS)
            .tags([TAG])
            .as_dropdown(False)
            .include_vars(True)
            .keep_time(True)
        )
        .annotation(_Mark("Restarts", _RESTARTS, "{{job}} {{instance}} restarted", "orange"))
        .annotation(
            _Mark("Deploys", _DEPLOYS, "{{job}} is now {{version}} ({{revision}})", "purple")
        )
        .annotation(
            _Mark("Model version begins", _SWITCHES, "{{job}}: model version {{version}}", "blue")
        )
    )
    if cases:
        board = board.with_variable(
            dashboard.DatasourceVariable("cases").label("Case store").type(CASES.type_val or "")
        )
    for name, (label, query) in (variables or {}).items():
        board = board.with_variable(_variable(name, label, query))
    for row, panels in rows.items():
        board = board.with_row(dashboard.Row(row))
        for panel in panels:
            board = board.with_panel(panel)
    built = board.build()
    for number, placed in enumerate(built.panels or [], start=1):
        placed.id_val = number  # addresses of single panels hold it
    return built
