"""Benchmarks as data: a small YAML says how a row becomes a prompt, an answer and a reward."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import yaml

from s2l_ext.config.parse import parse_block
from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation import forms

GROUP_COLUMNS = ("tier", "level")
"""By which results are given too, where rows have them."""
BUILT_IN = Path(__file__).parent / "benchmarks"


@dataclass(frozen=True)
class Problem:
    """One prompt with what its reward function needs; ``where`` is its file and row, ``groups`` its tier and level."""

    id: str
    where: str
    messages: list[dict[str, str]]
    data_source: str
    ground_truth: Any
    extra_info: dict[str, Any] = field(default_factory=dict)
    ability: str = ""
    reward: str | None = None
    groups: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Benchmark:
    """How rows become problems.

    Attributes:
        data_source: name under which the reward and the results know these problems.
        prompt: the user message; ``{column}`` is the row's value, ``{{`` and ``}}`` are braces.
        answer: column of the ground truth.
        answer_pattern: regular expression (multi-line); its first group, where found last, is the answer.
        id: column of the problem's id; where a row has none, the text's hash is the id.
        reward: ``package.module:function``; None chooses by ``data_source``.
        system: system message; empty for none.
        rename: old name to new name, for rows that lack the new one; dots reach into objects.
        wrong: columns of wrong options; the prompt's ``{A}``, ``{B}``, ... are all options, the truth is a letter.
        choices: column of options with their letters, as ``{options}`` in the prompt; the answer is a letter.
        tests: the answer is a program's tests in this form (``humaneval``, ``livecodebench``).
        refuse: columns that must be empty, for instance pictures, which a prompt cannot show.
        hub: data set that is read without ``--data``, ``owner/name[:config][@split]``.
    """

    data_source: str
    prompt: str
    answer: str
    answer_pattern: str | None = None
    id: str | None = None
    reward: str | None = None
    system: str = ""
    rename: dict[str, str] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    choices: str | None = None
    tests: Literal["humaneval", "livecodebench"] | None = None
    refuse: list[str] = field(default_factory=list)
    hub: str | None = None

    def problem(self, record: dict[str, Any], where: str) -> Problem:
        """The row as a problem. Raises DataError when a column is missing, blank or not what it must be."""
        row = self._renamed(record)
        for name in self.refuse:
            if row.get(name) not in (None, ""):
                raise DataError(f"{where}: column '{name}' is not empty, and a prompt cannot show it. Remove the row.")
        answer = self._parse_answer(row, where)
        named = {"id": str(row[self.id])} if self.id and row.get(self.id) is not None else {}
        messages, extra = self._messages({**row, **answer.columns}, where), {**named, **answer.extra}
        name, groups = prompt_id(messages, extra), groups_of(row)
        return Problem(name, where, messages, self.data_source, answer.truth, extra, "", self.reward, groups)

    def fingerprint(self) -> dict[str, Any]:
        """What decides the problems: everything but where they are kept."""
        return {name: value for name, value in asdict(self).items() if name != "hub"}

    def _renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        inner = {old: _value_at(row, old) for old in self.rename if "." in old and old not in row}
        row = {**row, **{old: value for old, value in inner.items() if value is not None}}
        free = {new for new in self.rename.values() if new not in row or isinstance(row[new], dict)}
        return {(self.rename[key] if self.rename.get(key) in free else key): row[key] for key in row}

    def _parse_answer(self, row: dict[str, Any], where: str) -> forms.ParsedAnswer:
        if self.tests:
            return forms.TESTS[self.tests](row, self.answer, where)
        if self.choices:
            return forms.choices(row, self.answer, self.choices, where)
        if self.wrong:
            return forms.options(row, self.answer, self.wrong, where)
        return forms.text(row, self.answer, self.answer_pattern, where)

    def _messages(self, row: dict[str, Any], where: str) -> list[dict[str, str]]:
        shown = {name: forms.prompt_value(row, name, where) for name in columns_of(self.prompt)}
        user = {"role": "user", "content": self.prompt.format(**shown)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]


def groups_of(row: dict[str, Any]) -> dict[str, str]:
    """The row's tier and level, where it has them."""
    return {name: str(row[name]) for name in GROUP_COLUMNS if row.get(name) not in (None, "")}


def _value_at(row: dict[str, Any], dotted: str) -> Any:
    value: Any = row
    for name in dotted.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value


def columns_of(template: str) -> Iterator[str]:
    """Names between single braces. Raises ValueError for braces that do not match, or other things between them."""
    for _, name, spec, conversion in Formatter().parse(template):
        if name is None:
            continue
        if not re.fullmatch(r"[^.\[\]]+", name) or name.isdigit() or spec or conversion:
            raise ValueError(f"{{{name}}} is not the name of a column; a brace itself is {{{{ or }}}}")
        yield name


def load_benchmark(name: str) -> Benchmark:
    """A built-in benchmark by name, or one from a YAML file. Raises DataError: there is none, or a key is unknown,
    missing or unusable."""
    path = BUILT_IN / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in BUILT_IN.glob("*.yaml")))
        raise DataError(f"--benchmark {name}: neither a built-in benchmark ({known}) nor a YAML file.")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DataError(f"{path}: no readable YAML ({' '.join(str(error).split())[:200]}).") from error
    return _parse_document(document, path)


def _parse_document(document: Any, path: Path) -> Benchmark:
    try:
        benchmark = parse_block(Benchmark, document, str(path))
    except ConfigError as error:
        raise DataError(str(error)) from error
    odd = [name for name in (*benchmark.rename, *benchmark.rename.values()) if not isinstance(name, str)]
    if odd:
        raise DataError(f"{path}: {odd[0]!r} is no name of a column (in rename). Quote it.")
    both = [name for name in ("answer_pattern", "wrong", "choices", "tests") if getattr(benchmark, name)]
    if len(both) > 1:
        raise DataError(f"{path}: {both[0]} and {both[1]} cannot both say what the answer is. Keep one.")
    try:
        list(columns_of(benchmark.prompt))
        re.compile(benchmark.answer_pattern or "")
    except (ValueError, re.error) as error:
        raise DataError(f"{path}: {error} (in prompt or answer_pattern).") from error
    return benchmark
