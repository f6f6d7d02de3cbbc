"""The list of patches is whole, and each of them still has something to replace and a test that ends it."""

import ast
import importlib
import importlib.util
import re
from operator import attrgetter
from pathlib import Path

import pytest

from s2l_ext.platforms.patches import PATCHES, Patch, cpu, training

pytestmark = pytest.mark.contract
ROOT = Path(__file__).parents[2]
PATCHED = ("verl", "vllm", "ray", "transformers", "transfer_queue", "torch")


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.name)
def test_a_patch_has_a_reason_a_target_and_a_test_that_ends_it(patch: Patch) -> None:
    assert patch.reason.endswith(".") and re.fullmatch(r"[\w-]+/[\w-]+#\d+", patch.upstream or "owner/name#1")
    file, _, test = patch.ends_with.partition("::")
    tree = ast.parse((Path(__file__).parent / file).read_text())
    assert test in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
    for place in patch.where:
        module, _, attribute = place.partition(":")
        if importlib.util.find_spec(module.partition(".")[0]) is None:
            pytest.skip(f"{module} is not installed")
        assert attrgetter(attribute)(importlib.import_module(module)) is not None


def test_every_function_of_the_two_files_that_patches_is_in_the_list() -> None:
    entered = {patch.name for patch in PATCHES}
    for file in (cpu, training):
        functions = [
            node for node in ast.parse(Path(file.__file__).read_text()).body if isinstance(node, ast.FunctionDef)
        ]
        assert {node.name for node in functions} - entered <= {"hook"}
    assert len(entered) == len(PATCHES)


def test_the_page_lists_every_patch_with_the_test_that_ends_it() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \|.*\| `tests/contract/([\w.:]+)` \|$", page, re.MULTILINE)
    assert dict(listed) == {patch.name: patch.ends_with for patch in PATCHES}


def imported_names(tree: ast.Module) -> set[str]:
    """Names under which a file knows modules and classes of the packages that we patch."""
    found: set[str] = set()
    for node in ast.walk(tree):
        names = getattr(node, "names", []) if isinstance(node, ast.Import | ast.ImportFrom) else []
        origin = getattr(node, "module", None)
        for alias in names:
            if (origin or alias.name).partition(".")[0] in PATCHED:
                found.add(alias.asname or alias.name.partition(".")[0])
    return found


def test_no_other_file_assigns_to_what_it_imported_from_them() -> None:
    wrong = []
    for path in (ROOT / "s2l_ext").rglob("*.py"):
        if path.parent.name == "patches":
            continue
        tree = ast.parse(path.read_text())
        known = imported_names(tree)
        for node in ast.walk(tree):
            targets = node.targets if isinstance(node, ast.Assign) else []
            bases = [one.value for target in targets for one in ast.walk(target) if isinstance(one, ast.Attribute)]
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setattr":
                bases = [node.args[0]]
            wrong += [f"{path.name}:{node.lineno}" for base in bases if isinstance(base, ast.Name) and base.id in known]
    assert wrong == []
