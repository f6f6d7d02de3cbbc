"""The equation index points at lines that hold what it says."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ENTRY = re.compile(r"`(s2l_ext/[\w/]+\.py):(\d+)` `([^`]+)`")


def test_every_reference_points_at_its_line() -> None:
    entries = ENTRY.findall((ROOT / "docs" / "paper_index.md").read_text())
    assert len(entries) >= 7
    for path, number, text in entries:
        lines = (ROOT / path).read_text().splitlines()
        assert text in lines[int(number) - 1], f"{path}:{number} should hold {text!r}: {lines[int(number) - 1]!r}"
