"""The equation index names symbols that the files have: a function, a class, or a class's method after a dot."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ENTRIES = re.findall(r"`(s2l_ext/[\w/]+\.py)` `([^`]+)`", (ROOT / "docs" / "paper_index.md").read_text())


def symbols(body: list[ast.stmt], before: str = "") -> Iterator[str]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield before + node.name
            if isinstance(node, ast.ClassDef):
                yield from symbols(node.body, f"{before}{node.name}.")


def test_there_are_references() -> None:
    assert len(ENTRIES) >= 35


@pytest.mark.parametrize(("path", "symbol"), ENTRIES)
def test_the_file_has_the_symbol(path: str, symbol: str) -> None:
    found = {*symbols(ast.parse((ROOT / path).read_text()).body)}
    assert symbol in found, f"docs/paper_index.md: {path} has no {symbol}"


def test_a_symbol_that_moved_is_seen() -> None:
    body = ast.parse("class A:\n    def b(self): ...\n\n\nasync def c(): ...\n").body
    assert {*symbols(body)} == {"A", "A.b", "c"}
