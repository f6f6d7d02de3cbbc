"""What the site generates: ``<!-- generated: NAME -->`` in a page becomes the text that the function NAME makes."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import importlib
import inspect
import itertools
import re
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, get_args, get_origin

from mkdocs.exceptions import PluginError

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)
API = {
    "Methods": ["s2l_ext.methods.base.Method", "s2l_ext.methods.registry.parse_s2l"],
    "S2L-PO": [f"s2l_ext.methods.explorer.schedule.{name}" for name in ("LinearAnnealing", "HardSwitch")],
    "EXPO": [
        *(f"s2l_ext.methods.kl.coefficient.{name}" for name in ("AccuracyConditionedKL", "AdaptiveTargetKL")),
        "s2l_ext.methods.curriculum.gaussian.GaussianCurriculum",
    ],
    "G2RPO-A": [
        *(f"s2l_ext.methods.guidance.length.{name}" for name in ("AdaptiveGuidance", "AdditiveGuidance")),
        *(f"s2l_ext.methods.guidance.length.{name}" for name in ("LinearDecay", "ConcaveDecay", "StepwiseDecay")),
        "s2l_ext.methods.guidance.client.usable_text",
    ],
    "Sparse-to-dense": [f"s2l_ext.methods.distill.divergences.{name}" for name in ("forward_kl", "reverse_kl", "jsd")],
    "Rewards and evaluation": [
        "s2l_ext.rewards.math.grade",
        "s2l_ext.rewards.math.compute_score",
        "s2l_ext.rewards.code.run_tests",
        "s2l_ext.rewards.code.extract_program",
        "s2l_ext.utils.pass_at_k.pass_at_k",
    ],
}
"""What others may build on, by its full name; mkdocstrings refuses a name that does not exist."""


def filled(markdown: str) -> str:
    """The page with its marks replaced. PluginError names a mark, a key or an option that cannot be shown."""

    def made(mark: re.Match[str]) -> str:
        if mark[1] not in GENERATED:
            raise PluginError(f"<!-- generated: {mark[1]} -->: choose from {', '.join(GENERATED)}.")
        return GENERATED[mark[1]]()

    return MARK.sub(made, markdown)


def api() -> str:
    """Every public name with its docstring, by mkdocstrings."""
    return "\n\n".join(f"## {title}\n\n" + "\n\n".join(f"::: {name}" for name in names) for title, names in API.items())


def config() -> str:
    """A table for each block of ``s2l:`` and each of its variants."""
    from s2l_ext.methods.registry import S2LConfig

    hints = inspect.get_annotations(S2LConfig, eval_str=True)
    blocks = {name: hint for name, hint in hints.items() if name != "others"}
    return "\n".join(part for name, hint in blocks.items() for part in block(f"s2l.{name}", variants(hint)))


def block(key: str, kinds: list[type]) -> Iterator[str]:
    """The tables of one block, those of the blocks in it after them."""
    described = [(kind, item) for kind in kinds for item in keys(kind)]
    owners = {name: [kind for kind, item in described if item.name == name] for name in {i.name for _, i in described}}
    yield f"\n## `{key}`\n"
    shared = [(kind, item) for kind, item in described if kind is kinds[0] and len(owners[item.name]) == len(kinds)]
    yield table(key, shared, kinds)
    for kind in kinds if len(kinds) > 1 else []:
        own = [(one, item) for one, item in described if one is kind and len(owners[item.name]) < len(kinds)]
        yield f"\n### `{key}` with `{keys(kind)[0].name}: {tag_of(kind)}`\n\n{summary(kind)}\n"
        yield table(key, own) if own else ""
    for kind, item in described:
        if inner := variants(hints_of(kind)[item.name]):
            yield from block(f"{key}.{item.name}", inner)


def table(key: str, items: list[tuple[type, dataclasses.Field[Any]]], kinds: Sequence[type] = ()) -> str:
    """``kinds``: variants whose tags the first key may name."""
    tags = ", ".join(f"`{tag_of(kind)}`" for kind in kinds) if len(kinds) > 1 else ""
    rows = []
    for kind, item in items:
        values = tags if tags and item.name == keys(kind)[0].name else allowed(kind, item)
        rows.append(f"| `{item.name}` | {code(default_of(item))} | {values} | {described(key, kind, item)} |")
    lines = ["| key | default | allowed | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(['<div class="keys" markdown>', "", *lines, "", "</div>"])


def keys(kind: type) -> list[dataclasses.Field[Any]]:
    return [item for item in dataclasses.fields(kind) if not item.metadata.get("internal")]


def variants(hint: Any) -> list[type]:
    return [one for one in (get_args(hint) or (hint,)) if dataclasses.is_dataclass(one)]


def hints_of(kind: type) -> dict[str, Any]:
    return {
        name: hint
        for owner in reversed(kind.__mro__)
        for name, hint in inspect.get_annotations(owner, eval_str=True).items()
    }


def tag_of(kind: type) -> str:
    choices = get_args(hints_of(kind)[keys(kind)[0].name])
    return str(choices[0]) if choices else "package.module:Class"


def summary(kind: type) -> str:
    return plain(inspect.getdoc(kind) or "")


def described(key: str, kind: type, item: dataclasses.Field[Any]) -> str:
    """The text below the field in the nearest class that has one. PluginError names a key without it."""
    for owner in kind.__mro__:
        if dataclasses.is_dataclass(owner) and (text := texts_below(owner).get(item.name)):
            return plain(text).replace("|", "\\|")
    has_it = next(one for one in kind.__mro__ if item.name in inspect.get_annotations(one))
    raise PluginError(
        f"{key}.{item.name} has no description. The reference is made of them. "
        f'Write """...""" below the field in {has_it.__module__}.{has_it.__qualname__}.'
    )


def texts_below(owner: type) -> dict[str, str]:
    body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0].body  # type: ignore[attr-defined]
    return {
        field.target.id: text.value.value
        for field, text in itertools.pairwise(body)
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant) and isinstance(text.value.value, str)
    }


def default_of(item: dataclasses.Field[Any]) -> str:
    if item.default_factory is not dataclasses.MISSING:
        return "{}" if item.default_factory is dict else "its defaults"
    if item.default is dataclasses.MISSING:
        return "required"
    return (
        "null"
        if item.default is None
        else str(item.default).lower()
        if isinstance(item.default, bool)
        else str(item.default)
    )


def allowed(kind: type, item: dataclasses.Field[Any]) -> str:
    """Choices or range, else the type."""
    hint, limits = hints_of(kind)[item.name], item.metadata.get("limits")
    options = get_args(hint) if get_origin(hint) is not Literal and not hasattr(hint, "__origin__") else (hint,)
    options = options or (hint,)
    if blocks := variants(hint):
        return "a block" if blocks else ""
    words = [str(word) for option in options if get_origin(option) is Literal for word in get_args(option)]
    names = {str: "text", int: "whole number", float: "number", bool: "true, false", dict: "mapping", list: "list"}
    kinds = [names[get_origin(one) or one] for one in options if (get_origin(one) or one) in names]
    ranged = f"{limits.describe()}" if limits and limits.describe() else ""
    parts = [*(f"`{word}`" for word in words), *(f"{name} {ranged}".strip() for name in kinds)]
    return ", ".join(parts)


def code(text: str) -> str:
    return text if text in ("required", "its defaults") else f"`{text}`"


def plain(text: str) -> str:
    return " ".join(text.split()).replace("``", "`")


def cli() -> str:
    """Every command with its options, from the parsers that it runs with."""
    from s2l_ext.cli import COMMANDS

    parts = []
    for words, command in COMMANDS.items():
        name = f"s2l {' '.join(words)}"
        parser = argparse.ArgumentParser(prog=name, add_help=False)
        importlib.import_module(command.module).add_arguments(parser)
        words_used = " ".join(parser.format_usage().removeprefix("usage: ").split())
        usage = textwrap.fill(words_used, 84, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False)
        parts.append(f"## `{name}`\n\n{command.summary[0].upper()}{command.summary[1:]}.\n\n```text\n{usage}\n```\n")
        rows = [option(name, action, parser) for action in parser._actions]
        parts.append("\n".join(["| argument | default | meaning |", "|---|---|---|", *rows]) + "\n" if rows else "")
    return "\n".join(parts)


def option(command: str, action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """A row of a command's table. PluginError names an option without help."""
    name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
    if not action.help:
        raise PluginError(f"{command} {name} has no help text. The reference is made of them: give add_argument help=.")
    default = "required" if action.required and action.option_strings else action.default
    shown = "" if default in (None, False, [], argparse.SUPPRESS) else str(default)
    if action.choices and not action.metavar:
        name += " " + "/".join(str(one) for one in action.choices)
    text = " ".join(str(action.help % (vars(action) | {"prog": parser.prog})).split())
    return f"| `{name}` | {code(shown) if shown else ''} | {escaped(text)} |"


def escaped(text: str) -> str:
    return re.sub(r"([*_\\|`\[\]])", r"\\\1", text).replace("<", "&lt;").replace(">", "&gt;")


GENERATED: dict[str, Callable[[], str]] = {"api": api, "config": config, "cli": cli}
