"""Renew the line numbers of docs/paper_index.md: ``make docs-index``.

An entry reads `` `s2l_ext/FILE.py:LINE` `text` ``. Where the line no longer holds the text, the nearest line that does
takes its place. An entry whose text is gone, or is as near twice, needs a person: exit code 1, nothing is written.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
INDEX = ROOT / "docs" / "paper_index.md"
ENTRY = re.compile(r"`(?P<path>s2l_ext/[\w/]+\.py):(?P<line>\d+)` `(?P<text>[^`]+)`")


def nearest(lines: list[str], text: str, line: int) -> int:
    """Number of the line with ``text`` that is nearest to ``line``; LookupError if there is none, or two as near."""
    distances = {number: abs(number - line) for number, content in enumerate(lines, 1) if text in content}
    if not distances:
        raise LookupError("the text is in no line")
    found = [number for number, distance in distances.items() if distance == min(distances.values())]
    if len(found) > 1:
        raise LookupError(f"lines {found[0]} and {found[1]} are equally near")
    return found[0]


def renewed(index: str, root: Path) -> tuple[str, list[str], list[str]]:
    """The index with its new numbers, what moved, and what a person must look at."""
    moved: list[str] = []
    lost: list[str] = []

    def renew(entry: re.Match[str]) -> str:
        path, line, text = entry["path"], int(entry["line"]), entry["text"]
        try:
            found = nearest((root / path).read_text().splitlines(), text, line)
        except (LookupError, OSError) as error:
            lost.append(f"{path}:{line} `{text}`: {error}")
            return entry[0]
        if found != line:
            moved.append(f"{path}:{line} -> {found} `{text}`")
        return f"`{path}:{found}` `{text}`"

    return ENTRY.sub(renew, index), moved, lost


def main() -> int:
    text, moved, lost = renewed(INDEX.read_text(), ROOT)
    for entry in lost:
        print(f"docs/paper_index.md: {entry}", file=sys.stderr)
    if lost:
        return 1
    INDEX.write_text(text)
    print("\n".join(moved) or "docs/paper_index.md: every line holds what it says")
    return 0


if __name__ == "__main__":
    sys.exit(main())
