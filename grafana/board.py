"""What all boards have in common: variables, links to each other, annotations, refresh."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from grafana_foundation_sdk.builders import dashboard
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models.dashboard import (
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


def _annotation(name: str, expr: str, colour: str) -> dashboard.AnnotationQuery:
    return (
        dashboard.AnnotationQuery()
        .name(name)
        .datasource(DATASOURCE)
        .enable(True)
        .icon_color(colour)
        .expr(expr)
    )


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
        .annotation(_annotation("Restarts", _RESTARTS, "orange"))
        .annotation(_annotation("Model version begins", _SWITCHES, "blue"))
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
