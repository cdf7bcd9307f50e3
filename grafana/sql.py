"""Panels that ask the case store: PostgreSQL, where the review desk keeps its cases.

The SDK has no typed query for PostgreSQL; this is the JSON that Grafana's own editor writes.
"""

from __future__ import annotations

from typing import Any, Final, Literal

from grafana_foundation_sdk.builders import common, stat, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.variants import Dataquery
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphDrawStyle,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef

__all__ = ["CASES", "WINDOW", "case_number", "case_series", "case_table"]

CASES: Final = DataSourceRef(type_val="grafana-postgresql-datasource", uid="${cases}")
"""The case store that the viewer picks on the board."""
WINDOW: Final = (
    "flagged_at_ms >= $__unixEpochFrom()::bigint * 1000 "
    "AND flagged_at_ms < $__unixEpochTo()::bigint * 1000"
)
"""The time that the board shows; the case store counts milliseconds."""

_Format = Literal["table", "time_series"]


class _Sql(Dataquery, Builder[Dataquery]):
    """One query; builder and result in one, since there is nothing to set later."""

    def __init__(self, sql: str, form: _Format) -> None:
        self._sql = sql
        self._form = form

    def build(self) -> Dataquery:
        return self

    def to_json(self) -> dict[str, Any]:
        return {
            "refId": "A",
            "datasource": CASES.to_json(),
            "editorMode": "code",
            "format": self._form,
            "rawQuery": True,
            "rawSql": self._sql,
        }


def case_series(
    title: str, description: str, unit: str, sql: str, *, width: int = 12
) -> timeseries.Panel:
    """Return a panel of stacked bars over time.

    Args:
        title: What is drawn.
        description: What it means.
        unit: Grafana's name of the unit.
        sql: Gives `time` (epoch seconds, rising), `metric` (the legend) and `value`.
        width: Columns of 24.
    """
    return (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .datasource(CASES)
        .draw_style(GraphDrawStyle.BARS)
        .fill_opacity(60)
        .stacking(common.StackingConfig().mode(StackingMode.NORMAL))
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.LIST)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
        )
        .with_target(_Sql(sql, "time_series"))
    )


def case_number(title: str, description: str, unit: str, sql: str, *, width: int = 6) -> stat.Panel:
    """Return a panel of one number; `sql` gives one row with one value."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .height(4)
        .datasource(CASES)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .with_target(_Sql(sql, "table"))
    )


def case_table(title: str, description: str, sql: str, *, width: int = 24) -> table.Panel:
    """Return a table with a column for each of the query's."""
    return (
        table.Panel()
        .title(title)
        .description(description)
        .unit("short")
        .span(width)
        .height(10)
        .datasource(CASES)
        .with_target(_Sql(sql, "table"))
    )
