"""Tables as figures, beside the charts."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

NUMBER = re.compile(r"^[+\-−]?[\d.,]+(e[+\-]?\d+)?( ?[%×])?$|^—$")


def table(
    title: str,
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    reading: str = "",
    colours: Sequence[str] = (),
    wrap: bool = False,
) -> str:
    """A figure as wide as the page. Columns of numbers stand to the right.

    Args:
        colours: CSS class of a mark before each row, to tie it to a line of the charts.
        wrap: long texts may break into lines; otherwise a narrow screen scrolls the table.
    """
    numeric = [all(not row[at] or NUMBER.match(row[at]) for row in rows) and at > 0 for at in range(len(head))]
    names = "".join(f"<th{_side(right)}>{html.escape(name)}</th>" for name, right in zip(head, numeric, strict=True))
    body = "".join(_row(row, numeric, colours[place] if colours else "") for place, row in enumerate(rows))
    style = "" if wrap else " class='tight'"
    drawn = f"<div class='scroll'><table{style}><tr>{names}</tr>{body}</table></div>" if rows else ""
    said = f"<p class='reading'>{html.escape(reading)}</p>" if reading else ""
    return f"<figure class='wide'><figcaption>{html.escape(title)}</figcaption>{drawn}{said}</figure>"


def _row(row: Sequence[str], numeric: Sequence[bool], colour: str) -> str:
    mark = f"<i class='mark {colour}'></i>" if colour else ""
    cells = [f"<td{_side(right)}>{html.escape(cell)}</td>" for cell, right in zip(row, numeric, strict=True)]
    return f"<tr>{cells[0].replace('<td>', f'<td>{mark}', 1)}{''.join(cells[1:])}</tr>"


def _side(right: bool) -> str:
    return " class='n'" if right else ""


def quantity(value: float | None, digits: int = 3) -> str:
    """Whole from a thousand, ``1.23e+12`` from a thousand million; a dash for what is not known."""
    if value is None:
        return "—"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def ratio(value: float | None, to: float | None) -> str:
    """``0.750 ×``; a dash where one is not known or the second is 0."""
    return "—" if value is None or not to else f"{value / to:.3f} ×"
