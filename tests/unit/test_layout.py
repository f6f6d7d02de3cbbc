"""The layout is what docs/architecture.md says: methods in folders of their own, and no circle between files."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from s2l_ext.methods.registry import METHODS, method_class

PACKAGE = Path(__file__).parents[2] / "s2l_ext"
FILES = {path: ast.parse(path.read_text()) for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts): path for path in FILES}
CONTAINERS = {name.removesuffix(".__init__"): path for name, path in MODULES.items()}


def imported(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(module, name) of every import, those inside functions too, but none for the type checker alone."""
    checked = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test)]
    skipped = {id(inner) for node in checked for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in skipped:
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import) and id(node) not in skipped:
            yield from ((alias.name, "") for alias in node.names)


def edges() -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for name, path in CONTAINERS.items():
        targets = {
            f"{module}.{item}" if f"{module}.{item}" in CONTAINERS else module for module, item in imported(FILES[path])
        }
        found[name] = {target for target in targets if target in CONTAINERS and target != name}
    return found


@pytest.mark.slow
def test_no_two_files_import_each_other_however_long_the_way() -> None:
    graph, done = edges(), set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for target in sorted(graph[name]):
                visit(target, [*way, name])
            done.add(name)

    for name in sorted(graph):
        visit(name, [])


@pytest.mark.slow
@pytest.mark.parametrize("block", METHODS)
def test_only_the_registry_and_its_own_folder_name_a_methods_configuration(block: str) -> None:
    kind = method_class(block).config_class
    names = {one.__name__ for one in get_args(kind) or [kind]}
    allowed = (PACKAGE / "methods" / block, PACKAGE / "methods" / "registry.py")
    users = [path for path, tree in FILES.items() if names & {item for _, item in imported(tree)}]
    outside = [str(path.relative_to(PACKAGE)) for path in users if not any(path.is_relative_to(one) for one in allowed)]
    assert outside == [], f"{names} belong to methods/{block}"


@pytest.mark.slow
def test_one_file_reads_and_writes_the_queue() -> None:
    users = [
        path.name
        for path, tree in FILES.items()
        if any(module.split(".")[0] == "transfer_queue" for module, _ in imported(tree))
    ]
    assert users == ["queue.py"]


def test_the_documented_tree_is_the_tree() -> None:
    text = (PACKAGE.parent / "docs" / "architecture.md").read_text()
    table = text[text.index("## Folders") : text.index("## A method")]
    named = set(
        re.findall(r"`(\w+)/`", " ".join(line.split("|")[1] for line in table.splitlines() if line.startswith("| `")))
    )
    assert named == {path.name for path in PACKAGE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}


def test_every_block_is_a_folder_whose_docstring_names_paper_and_state() -> None:
    for block in METHODS:
        said = ast.get_docstring(FILES[PACKAGE / "methods" / block / "__init__.py"]) or ""
        assert re.search(r"arXiv \d{4}\.\d{5}", said) and "The one change versus GRPO" in said and "State kept" in said
        assert method_class(block).block == block
