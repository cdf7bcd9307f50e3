"""Bits of HTML and CSS that the pages share. Everything that is data goes through `text`."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

__all__ = ["STYLE", "account", "facts", "figure_strip", "pill", "plain", "text"]

_MARKDOWN = re.compile(r"([!-/:-@\[-`{-~])")
"""ASCII punctuation: what a backslash makes literal in Markdown."""

STYLE = """<style>
.block-container, [data-testid="stMainBlockContainer"] {
  padding: 3.1rem 1.6rem 2rem; max-width: 124rem; }
[data-testid="stMain"]:focus-visible { outline: none; }
[data-testid="stButtonGroup"] button { min-height: 2.45rem; }
.st-key-bulk { min-height: 2.6rem; justify-content: center; }
.d-strip { display: flex; flex-wrap: wrap; gap: .4rem 2.2rem; align-items: baseline; }
.d-strip div { line-height: 1.2; }
.d-strip b { font-size: 1.35rem; font-weight: 600; font-variant-numeric: tabular-nums; }
.d-strip span, .d-quiet { opacity: .68; font-size: .86rem; }
.d-strip span { margin-left: .45rem; }
.d-head { display: flex; flex-wrap: wrap; align-items: center; gap: .3rem .9rem; }
.d-head b { font-size: 1.9rem; font-weight: 650; font-variant-numeric: tabular-nums; }
.d-pill { display: inline-block; padding: .05rem .6rem; border-radius: 1rem; font-size: .85rem;
  border: 1px solid currentColor; }
.d-decline, .d-fraud { color: light-dark(#c0322b, #ff8f86); }
.d-review, .d-escalated { color: light-dark(#b26a00, #f2b457); }
.d-new { color: light-dark(#2563c9, #8ab4f8); } .d-claimed { opacity: .75; }
.d-dismissed { color: light-dark(#1f7a4d, #5cc98f); }
.d-legend { display: flex; flex-wrap: wrap; gap: .1rem 1rem; font-size: .86rem; opacity: .85; }
.d-legend b { font-size: 1.35em; font-weight: 400; line-height: 1; }
.d-legend i { display: inline-block; width: .6rem; height: .6rem; margin-right: .35rem;
  border-radius: 50%; }
.d-facts { display: grid; grid-template-columns: max-content 1fr; gap: .28rem 1.1rem;
  font-size: .92rem; margin: 0 !important; padding: 0 !important; }
.d-facts dt { opacity: .68; } .d-facts dd { margin: 0; overflow-wrap: anywhere; }
.d-reasons { margin: 0; padding-left: 1.25rem; } .d-reasons li { margin: .18rem 0; }
.d-policy { opacity: .7; font-size: .9rem; margin: .5rem 0 0; }
.d-trail { list-style: none; margin: 0 !important; padding: 0 !important; font-size: .9rem; }
.d-trail li { margin: 0 !important; }
.d-trail li { padding: .35rem 0 .35rem .8rem; border-left: 2px solid
  color-mix(in srgb, currentColor 22%, transparent); }
.d-trail p { margin: .15rem 0 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.d-out { position: fixed; top: 1rem; right: 1.7rem; z-index: 999999; font-size: .9rem; }
.d-out a { color: inherit; margin-left: .8rem; }
</style>"""


def text(value: object) -> str:
    """Return a value as HTML text: nothing in it is markup."""
    return html.escape(str(value))


def plain(value: object) -> str:
    """Return a value for where Streamlit reads Markdown: no link, picture or emphasis in it."""
    return _MARKDOWN.sub(r"\\\1", str(value))


def account(name: str, role: str) -> str:
    """Return who is logged in and the way out, for the page's upper right corner."""
    lead = " (lead)" if role == "lead" else ""
    return (
        f'<div class="d-out">{text(name)}{lead} <a href="logout" target="_self">Log out</a></div>'
    )


def pill(kind: str, words: str) -> str:
    """Return a coloured label; `kind` is one of the words with a colour above."""
    return f'<span class="d-pill d-{text(kind)}">{text(words)}</span>'


def facts(pairs: Sequence[tuple[str, str | None]]) -> str:
    """Return names and values as a list; those without a value are left out."""
    items = "".join(f"<dt>{text(k)}</dt><dd>{text(v)}</dd>" for k, v in pairs if v)
    return f'<dl class="d-facts">{items}</dl>'


def figure_strip(pairs: Sequence[tuple[str, str]]) -> str:
    """Return figures with their meaning in one line."""
    items = "".join(f"<div><b>{text(v)}</b><span>{text(k)}</span></div>" for v, k in pairs)
    return f'<div class="d-strip">{items}</div>'
