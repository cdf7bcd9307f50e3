"""Panels that cannot be made without a title, a description and a unit."""

from __future__ import annotations

from collections.abc import Sequence

from grafana_foundation_sdk.builders import (
    common,
    dashboard,
    heatmap,
    prometheus,
    stat,
    timeseries,
)
from grafana_foundation_sdk.models.common import (
    BigValueGraphMode,
    GraphThresholdsStyleMode,
    LegendDisplayMode,
    LegendPlacement,
    StackingMode,
    TooltipDisplayMode,
    VisibilityMode,
)
from grafana_foundation_sdk.models.dashboard import DataSourceRef, Threshold, ThresholdsMode
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode, HeatmapColorScale
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

__all__ = ["DATASOURCE", "QUANTILES", "buckets", "number", "quantiles", "series"]

DATASOURCE = DataSourceRef(type_val="prometheus", uid="${datasource}")
"""The Prometheus that the viewer picks on the board."""
QUANTILES = (0.5, 0.95, 0.99, 0.999)
ROW_UNITS = 24
"""Width of a board."""
GREEN, ORANGE, RED = "green", "orange", "red"

Query = tuple[str, str]
"""PromQL and the legend of its series."""


def quantiles(histogram: str, selector: str) -> list[Query]:
    """Return queries of a histogram's percentiles over all instances that the selector takes.

    Args:
        histogram: Name without `_bucket`.
        selector: Label matchers, without braces.
    """
    rate = f"sum by (le) (rate({histogram}_bucket{{{selector}}}[$__rate_interval]))"
    return [(f"histogram_quantile({q}, {rate})", f"p{q * 100:g}") for q in QUANTILES]


def _targets(queries: Sequence[Query]) -> list[prometheus.Dataquery]:
    return [
        prometheus.Dataquery().expr(expr).legend_format(legend).ref_id(chr(ord("A") + place))
        for place, (expr, legend) in enumerate(queries)
    ]


def _thresholds(warning: float | None, critical: float | None) -> dashboard.ThresholdsConfig:
    steps = [Threshold(None, GREEN)]
    if warning is not None:
        steps.append(Threshold(warning, ORANGE))
    if critical is not None:
        steps.append(Threshold(critical, RED))
    return dashboard.ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(steps)


def series(
    title: str,
    description: str,
    unit: str,
    queries: Sequence[Query],
    *,
    width: int = ROW_UNITS // 2,
    stacked: bool = False,
    limit: float | None = None,
) -> timeseries.Panel:
    """Return a panel of lines over time.

    Args:
        title: What is drawn.
        description: What it means and what to do about it.
        unit: Grafana's name of the unit.
        queries: The lines.
        width: Columns of 24.
        stacked: Put the lines on top of each other: for parts of one sum.
        limit: Value from which on the background is red.
    """
    panel = (
        timeseries.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .min(0)
        .span(width)
        .height(8)
        .datasource(DATASOURCE)
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .show_points(VisibilityMode.NEVER)
        .stacking(
            common.StackingConfig().mode(StackingMode.NORMAL if stacked else StackingMode.NONE)
        )
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI))
        .legend(
            common.VizLegendOptions()
            .display_mode(LegendDisplayMode.TABLE)
            .placement(LegendPlacement.BOTTOM)
            .show_legend(True)
            .calcs(["lastNotNull", "max"])
        )
        .targets(list(_targets(queries)))
    )
    if limit is not None:
        panel = panel.thresholds(_thresholds(None, limit)).thresholds_style(
            common.GraphThresholdsStyleConfig().mode(GraphThresholdsStyleMode.AREA)
        )
    return panel


def number(
    title: str,
    description: str,
    unit: str,
    query: str,
    *,
    width: int = 4,
    warning: float | None = None,
    critical: float | None = None,
) -> stat.Panel:
    """Return a panel of one number, coloured by its thresholds, with its recent past behind it."""
    return (
        stat.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .height(4)
        .datasource(DATASOURCE)
        .graph_mode(BigValueGraphMode.AREA)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
        .thresholds(_thresholds(warning, critical))
        .targets(list(_targets([(query, title)])))
    )


def buckets(
    title: str, description: str, unit: str, query: str, *, width: int = ROW_UNITS // 2
) -> heatmap.Panel:
    """Return a heat map of a histogram over time: the darker, the more fell between two bounds.

    Args:
        title: What is drawn.
        description: What it means and what to do about it.
        unit: Grafana's name of the bounds' unit.
        query: Gives one series for each bound, by `le`.
        width: Columns of 24.
    """
    return (
        heatmap.Panel()
        .title(title)
        .description(description)
        .unit(unit)
        .span(width)
        .height(8)
        .datasource(DATASOURCE)
        .calculate(False)
        # Exponential: the rare high scores are to be seen beside the many low ones.
        .color(
            heatmap.HeatmapColorOptions()
            .mode(HeatmapColorMode.SCHEME)
            .scheme("Blues")
            .scale(HeatmapColorScale.EXPONENTIAL)
            .exponent(0.3)
            .steps(64)
        )
        .filter_values(heatmap.FilterValueRange().le(1e-9))
        .cell_gap(1)
        .mode(TooltipDisplayMode.SINGLE)
        .targets(
            [
                prometheus.Dataquery()
                .expr(query)
                .legend_format("{{le}}")
                .format(PromQueryFormat.HEATMAP)
                .ref_id("A")
            ]
        )
    )
