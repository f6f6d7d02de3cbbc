"""docs/faults.md promises only what a test shows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROMISED = (ROOT / "docs" / "faults.md").read_text().partition("## Not promised yet")[0]
ROWS = [line for line in PROMISED.splitlines() if line.startswith("| ") and not line.startswith("| what happens")]
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def names_in(path: Path) -> set[str]:
    tree = ast.parse(path.read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip()[:40])
def test_every_promise_names_tests_that_exist(row):
    _, fault, follows, shown_by, _ = row.split("|")
    assert fault.strip() and follows.strip()
    named = TEST.findall(shown_by)
    assert named and not re.sub(r"[\s,]", "", TEST.sub("", shown_by)), "the last column holds tests alone"
    for path, name in named:
        assert name in names_in(ROOT / path), f"{path} has no {name}"


def test_the_table_is_read():
    assert len(ROWS) >= 30
