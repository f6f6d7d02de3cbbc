"""The equation index names text that stands in the files that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = re.findall(r"`(s2l_ext/[\w/]+\.py)` `([^`]+)`", (ROOT / "docs" / "paper_index.md").read_text())


def test_there_are_references() -> None:
    assert len(ENTRIES) >= 35


@pytest.mark.parametrize(("path", "text"), ENTRIES)
def test_the_file_has_what_the_index_says(path: str, text: str) -> None:
    assert text in (ROOT / path).read_text()
