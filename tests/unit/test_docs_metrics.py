"""docs/metrics.md has every metric that the code writes, with a meaning and a unit, and no other.

Names are read from the source: importing the trainer takes longer than all other tests of this folder.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "s2l_ext"
DOCUMENT = ROOT / "docs" / "metrics.md"
READERS = ("report", "pipeline")
"""Rooms that only read metrics."""
ANY = "<>"

COMPOSED: dict[str, list[tuple[str, str]]] = {
    "s2l/kl/": [
        ("methods/kl/controller.py", "before_update"),
        ("methods/kl/controller.py", "after_update"),
        ("methods/kl/coefficient.py", "metrics"),
    ],
    "s2l/curriculum/": [
        ("methods/curriculum/controller.py", "metrics"),
        ("methods/curriculum/pass_rates.py", "metrics"),
        ("methods/curriculum/gaussian.py", "metrics"),
        ("methods/curriculum/orders.py", "metrics"),
    ],
    "s2l/guidance/": [
        ("methods/guidance/controller.py", "learn"),
        ("methods/guidance/controller.py", "statistics"),
        ("training/source_statistics.py", "OF_GUIDANCE"),
        ("methods/guidance/length.py", "metrics"),
    ],
    "s2l/distill/": [("methods/distill/worker.py", "REPORTED"), ("methods/distill/worker.py", "VALUE")],
    f"s2l/source/{ANY}/": [
        ("training/source_statistics.py", "row_statistics"),
        ("training/source_statistics.py", "token_statistics"),
        ("training/source_statistics.py", "OVER_ROWS"),
        ("training/source_statistics.py", "OVER_READ"),
        ("training/source_statistics.py", "OVER_TOKENS"),
        ("training/source_statistics.py", "OVER_SAMPLED"),
    ],
}
"""Where the last part of ``f"s2l/kl/{name}"`` comes from: the dictionary keys of a function, or a constant."""


def text_of(node: ast.AST) -> str | None:
    """A text or an f-string, whose fields read ``<>``; None for anything else."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else ANY for part in node.values)
    return None


def written_whole(tree: ast.Module) -> Iterator[str]:
    """Texts that begin with ``s2l/``, documentation and the parts of f-strings left out."""
    skipped = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    skipped |= {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        text = text_of(node) if id(node) not in skipped else None
        if text and text.startswith("s2l/"):
            yield text


def keys(node: ast.AST) -> Iterator[str]:
    """Names that a function puts into dictionaries."""
    for part in ast.walk(node):
        found: list[ast.AST | None] = []
        if isinstance(part, ast.Dict):
            found = list(part.keys)
        elif isinstance(part, ast.DictComp):
            found = [part.key]
        elif isinstance(part, ast.Subscript) and isinstance(part.ctx, ast.Store):
            found = [part.slice]
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "_mean_accuracy":
            found = [part.args[0]]
        texts = [text_of(each) for each in found if each is not None]
        names = [text.removeprefix(f"{ANY}/") for text in texts if text and not text.startswith("s2l/")]
        yield from (name for name in names if name != ANY)


def constant(value: object) -> list[str]:
    """The names in a constant: itself, its items, or a mapping's values (empty: not logged)."""
    if isinstance(value, str):
        return [value]
    return [name for name in (value.values() if isinstance(value, dict) else value) if name]


def names_from(path: str, where: str) -> set[str]:
    tree = ast.parse((PACKAGE / path).read_text())
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == where]
    if functions:
        return {name for function in functions for name in keys(function)}
    for node in tree.body:
        if isinstance(node, ast.Assign) and any(
            isinstance(name, ast.Name) and name.id == where for name in node.targets
        ):
            return set(constant(ast.literal_eval(node.value)))
    raise AssertionError(f"{path} has no {where}: COMPOSED must name where the metrics come from")


def emitted() -> set[str]:
    """Every metric's name as the code writes it, with ``<>`` for what is only known in a run."""
    names: set[str] = set()
    composed: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path.relative_to(PACKAGE).parts[0] in READERS:
            continue
        for text in written_whole(ast.parse(path.read_text())):
            prefix, _, last = text.rpartition("/")
            (composed if last in (ANY, "") else names).add(f"{prefix}/" if last in (ANY, "") else text)
    composed = {f"{prefix}{ANY}/" if prefix == "s2l/source/" else prefix for prefix in composed}
    assert composed == set(COMPOSED), "metrics with a new prefix: say in COMPOSED where their names come from"
    for prefix, places in COMPOSED.items():
        names |= {f"{prefix}{name}" for path, where in places for name in names_from(path, where)}
    return names


def documented() -> dict[str, list[str]]:
    """Names in the first column of the tables, with the other cells of the row."""
    rows: dict[str, list[str]] = {}
    for line in DOCUMENT.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else [""]
        rows |= dict.fromkeys(re.findall(r"`(s2l/[^`]+)`", cells[0]), cells[1:])
    return rows


def fits(name: str, template: str) -> bool:
    return re.fullmatch(re.escape(template).replace(re.escape(ANY), "[^/]+"), name) is not None


EMITTED, DOCUMENTED = sorted(emitted()), documented()


def test_the_search_sees_names_of_every_kind():
    assert {
        "s2l/explorer/rollouts_per_group",
        "s2l/kl/rho",
        "s2l/kl/beta_reported_low",
        "s2l/guidance/acc_guided",
    } <= set(EMITTED)
    assert {"s2l/curriculum/pass_rate_q<>", "s2l/distill/value", "s2l/source/<>/kl_sampler_learner_k3"} <= set(EMITTED)
    assert {"s2l/source/<>/ppo_ratio_mean", "s2l/source/<>/is_weight_mean", "s2l/source/<>/rows"} <= set(EMITTED)
    assert len(EMITTED) >= 60


@pytest.mark.parametrize("template", EMITTED)
def test_what_the_code_writes_is_documented(template):
    assert any(fits(name, template) for name in DOCUMENTED), f"docs/metrics.md lacks {template}"


@pytest.mark.parametrize("name", sorted(DOCUMENTED))
def test_what_is_documented_is_written_and_has_meaning_and_unit(name):
    assert any(fits(name, template) for template in EMITTED), f"no code writes {name}"
    meaning, unit, *_ = DOCUMENTED[name]
    assert len(meaning) > 10 and unit


def test_a_new_metric_would_be_seen():
    code = 'def f(m, name):\n    "s2l/no/metric"\n    m["s2l/new/one"] = 1\n    m[f"s2l/new/{name}"] = 2\n'
    assert sorted(written_whole(ast.parse(code))) == ["s2l/new/<>", "s2l/new/one"]
    body = 'def g():\n    a = {"x": 1, f"y_{z}": 2}\n    a["w"] = a["not this"]\n    return _mean_accuracy("v", [])\n'
    assert sorted(keys(ast.parse(body))) == ["v", "w", "x", "y_<>"]
