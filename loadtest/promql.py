"""What PromQL expressions select, as far as our own rules use the language."""

from __future__ import annotations

import re

__all__ = ["selectors"]

_SELECTOR = re.compile(r"\b(?:flagger_|flagger:|nv_|up\b)[\w:]*(?:\{[^}]*\})?")
_AROUND = re.compile(
    r"\b(?:sum|max|count|rate|increase|vector|label_replace|and|or|unless)\b"
    r"|\boffset \w+\b|\bby \([\w, ]+\)"
    r'|"[^"]*"|\[\w+\]|\b[\d.]+\b|[-+*/()<>=,]|\s+'
)
"""What may stand around selectors; a misspelt metric is neither."""


def selectors(expr: str) -> set[str]:
    """Return the selectors of an expression, without ranges.

    Raises:
        ValueError: Something in it is neither a metric of ours nor known PromQL.

    >>> sorted(selectors('sum by (a) (rate(flagger_x_total{b="c"}[5m])) > 3 or up == 0'))
    ['flagger_x_total{b="c"}', 'up']
    """
    unknown = _AROUND.sub("", _SELECTOR.sub("", expr))
    if unknown:
        raise ValueError(f"What is {unknown!r} in {expr}?")
    return set(_SELECTOR.findall(expr))
