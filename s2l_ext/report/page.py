"""The one page builder: sections of figures and tables in a single file that loads nothing, light and dark.

The texts around the drawings are ``page.html.jinja`` and ``parts.html.jinja``; both escape what they are given.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from s2l_ext.errors import DataError
from s2l_ext.utils.files import writable, write_atomically

GENERATOR = "<meta name='generator' content='s2l'>"
NUMBER = re.compile(r"^[+\-−]?[\d.,]+(e[+\-]?\d+)?( ?[%×])?$|^—$")
TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=True,
    trim_blocks=True,
    lstrip_blocks=True,
    undefined=StrictUndefined,
)
parts: Any = TEMPLATES.get_template("parts.html.jinja").module

Range = tuple[float, float]


@dataclass(frozen=True)
class Section:
    """Figures under one heading; ``name`` is for programs."""

    name: str
    title: str
    figures: Sequence[Markup]

    @property
    def is_drawn(self) -> bool:
        """At least one figure is a drawing or a table, not a sentence about what is missing."""
        return any("<svg" in figure or "<table" in figure for figure in self.figures)


def page(title: str, heading: str, lead: str, sections: Sequence[Section]) -> str:
    """A whole page. Nothing in it is loaded from elsewhere."""
    template = TEMPLATES.get_template("page.html.jinja")
    return template.render(title=title, heading=heading, lead=lead, sections=sections) + "\n"


def figure(
    title: str, drawing: Markup, legend: Sequence[tuple[str, str]] = (), reading: str = "", wide: bool = False
) -> Markup:
    """``legend`` holds names and CSS classes, ``reading`` says what to see; ``wide`` spans the page."""
    drawn: Markup = parts.figure(title, drawing, legend, reading, "", wide)
    return drawn


def empty(title: str, why: str, wide: bool = False) -> Markup:
    """A figure that says in a sentence why there is nothing to draw."""
    drawn: Markup = parts.figure(title, "", (), "", why, wide)
    return drawn


def table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    reading: str = "",
    runs: Sequence[tuple[str, str]] = (),
    style: str = "tight",
) -> Markup:
    """A figure as wide as the page. Columns of numbers stand to the right; cells may be markup.

    Args:
        runs: where a page shows several, name and CSS class of each row's run: a first column with the charts' colours.
        style: "tight": a narrow screen scrolls the table; "": long texts break into lines; "samples": texts to read.
    """
    if runs:
        head, rows = ["run", *head], [[name, *row] for (name, _), row in zip(runs, rows, strict=True)]
    numeric = [all(not row[at] or NUMBER.match(row[at]) for row in rows) and at > 0 for at in range(len(head))]
    colours = [colour for _, colour in runs]
    return figure(title, parts.table(head, rows, numeric, colours, style) if rows else Markup(), (), reading, True)


def describe_interval(interval: Range | None, sign: str = "") -> str:
    """`` (0.100 to 0.200)``; nothing without an interval."""
    return "" if interval is None else f" ({interval[0]:{sign}.3f} to {interval[1]:{sign}.3f})"


def refuse_foreign(path: Path) -> None:
    """Raises DataError: a page is there that this package did not write."""
    if path.exists() and GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:200]:
        raise DataError(f"{path}: not made by s2l, so it is kept. Choose another folder with --out.")


def write_page(path: Path, text: str) -> None:
    """The page in its folder, which is made where it is missing; an earlier page is replaced. Raises DataError: the
    folder cannot be made or written, or the page there is not ours."""
    with writable(path.parent, "Choose another folder with --out."):
        refuse_foreign(path)
        write_atomically(path, text)
