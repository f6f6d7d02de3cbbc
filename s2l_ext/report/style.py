"""What every page of this package shares: the style sheet, light and dark, and the frame of one file."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

GENERATOR = "<meta name='generator' content='s2l'>"
STYLE = """
:root { color-scheme: light dark; --ink: #1c2330; --soft: #5b6576; --paper: #fff; --panel: #f5f6f9; --rule: #d9dde5;
  --learner: #1f6fd1; --explorer: #c8690a; --plan: #7a8496; --third: #23836b; --fourth: #9a4bb5;
  --fifth: #c2354f; --sixth: #7d7410; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebf1; --soft: #a3adbd; --paper: #14171d; --panel: #1d222b;
  --rule: #363d4a; --learner: #6fb1ff; --explorer: #ffab57; --plan: #97a1b3; --third: #5fcfae; --fourth: #d99bf0;
  --fifth: #ff8b9c; --sixth: #d3c653; } }
body { margin: 0 auto; max-width: 1020px; padding: 28px 20px 60px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 17px; margin: 30px 0 10px; }
.lead { font-size: 17px; margin: 0 0 20px; } .note, small { color: var(--soft); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 16px; }
figure { margin: 0; padding: 12px 14px; background: var(--panel); border-radius: 8px; }
figcaption { font-weight: 600; margin-bottom: 6px; } svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; } .grid { stroke: var(--rule); stroke-width: 1; }
.learner { --c: var(--learner); } .explorer { --c: var(--explorer); } .plan { --c: var(--plan); }
.line { fill: none; stroke: var(--c); stroke-width: 2; } .planned { stroke-width: 7; opacity: .4; }
.dot { fill: var(--c); } .band { fill: var(--c); opacity: .18; }
.legend { display: flex; flex-wrap: wrap; gap: 0 16px; font-size: 13px; margin-top: 4px; }
.legend i { display: inline-block; width: 14px; height: 3px; background: var(--c); margin-right: 6px;
  vertical-align: 3px; }
table { border-collapse: collapse; width: 100%; }
td, th { text-align: left; padding: 5px 10px 5px 0; vertical-align: top;
  border-bottom: 1px solid var(--rule); } th { font-weight: 500; color: var(--soft); white-space: nowrap; }
.scroll { overflow-x: auto; } code { font-family: ui-monospace, monospace; font-size: 13px;
  overflow-wrap: anywhere; white-space: pre-wrap; }
.cell, .swatch { fill: var(--learner); } .plot { fill: var(--paper); } .bar { fill: var(--c); }
.third, .right { --c: var(--third); } .fourth { --c: var(--fourth); } .fifth, .wrong { --c: var(--fifth); }
.sixth { --c: var(--sixth); } .dashed { stroke-dasharray: 7 4; } .dotted { stroke-dasharray: 2 3; }
.legend .dashed i { background: repeating-linear-gradient(90deg, var(--c) 0 5px, transparent 5px 7px); }
.legend .dotted i { background: repeating-linear-gradient(90deg, var(--c) 0 2px, transparent 2px 4px); }
.dot.dashed, .dot.dotted { stroke-dasharray: none; } td.n, th.n { text-align: right; padding-right: 18px;
  font-variant-numeric: tabular-nums; } .tight td { white-space: nowrap; }
.mark { display: inline-block; width: 12px; height: 12px; border-radius: 3px; background: var(--c); margin-right: 7px;
  vertical-align: -1px; }
.badge { border: 1px solid var(--c); color: var(--c); border-radius: 9px; padding: 0 7px; font-size: 12.5px;
  white-space: nowrap; } .samples td:has(> code, > details) { min-width: 130px; }
.samples td:nth-last-child(2) { min-width: 200px; } .samples td:last-child { min-width: 44px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 8px; font-size: 14px; }
figure table { font-size: 13.5px; } tr:last-child td { border-bottom: 0; } section { scroll-margin-top: 8px; }
.curve { fill: none; stroke: var(--c); stroke-width: 1.5; } .reading { margin: 8px 0 0; font-size: 13.5px; }
.key { display: flex; flex-wrap: wrap; gap: 4px 12px; font-size: 13px; margin-top: 4px; align-items: center; }
.key svg { width: 16px; height: 12px; display: inline-block; margin-right: 5px; vertical-align: -1px; }
a { color: var(--learner); } .wide { grid-column: 1 / -1; overflow-x: auto; }
.wide > svg { min-width: 680px; } .places { grid-template-columns: repeat(auto-fill, minmax(min(100%, 400px), 1fr)); }
"""


def document(title: str, body: str) -> str:
    """A whole page. Nothing in it is loaded from elsewhere."""
    viewport = "<meta name='viewport' content='width=device-width, initial-scale=1'>"
    head = f"<meta charset='utf-8'>{GENERATOR}{viewport}<title>{html.escape(title)}</title><style>{STYLE}</style>"
    return f"<!doctype html><html lang='en'><head>{head}</head><body>{body}</body></html>\n"


@dataclass(frozen=True)
class Section:
    """Figures under one heading; ``name`` is for programs."""

    name: str
    title: str
    figures: Sequence[str]

    @property
    def is_drawn(self) -> bool:
        """At least one figure is a drawing or a table, not a sentence about what is missing."""
        return any("<svg" in figure or "<table" in figure for figure in self.figures)

    def html(self) -> str:
        figures = f"<div class='charts places'>{''.join(self.figures)}</div>"
        return f"<section id='{self.name}'><h2>{html.escape(self.title)}</h2>{figures}</section>"


def contents(sections: Sequence[Section]) -> str:
    """Links to the sections of the page."""
    links = (f"<a href='#{section.name}'>{html.escape(section.title)}</a>" for section in sections)
    return f"<nav>{''.join(links)}</nav>"
