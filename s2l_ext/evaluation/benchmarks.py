"""Benchmarks as data: a small YAML says how a row of JSON lines becomes a prompt, an answer and a reward."""

from __future__ import annotations

import re
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path
from typing import Any

import yaml

from s2l_ext.errors import DataError

BUILT_IN = Path(__file__).parent / "benchmarks"
COLUMN = re.compile(r"(?<!\{)\{(\w+)\}(?!\})")


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
        rename: old name to new name, for rows that lack the new one.
    """

    data_source: str
    prompt: str
    answer: str
    answer_pattern: str | None = None
    id: str | None = None
    reward: str | None = None
    system: str = ""
    rename: dict[str, str] = field(default_factory=dict)

    def messages(self, row: dict[str, Any], where: str) -> list[dict[str, str]]:
        """The chat. Raises DataError when a row lacks a column of the template."""
        for name in COLUMN.findall(self.prompt):
            require_column(row, name, where)
        user = {"role": "user", "content": self.prompt.format(**row)}
        return [{"role": "system", "content": self.system}, user] if self.system else [user]

    def truth(self, row: dict[str, Any], where: str) -> str:
        """The ground truth. Raises DataError when a row has none."""
        text = str(require_column(row, self.answer, where))
        found = re.findall(self.answer_pattern, text, re.MULTILINE) if self.answer_pattern else []
        truth = str(found[-1] if found else text).strip()
        if not truth:
            raise DataError(f"{where}: column '{self.answer}' holds no answer. Fill it, or remove the row.")
        return truth

    def renamed(self, row: dict[str, Any]) -> dict[str, Any]:
        return {(self.rename.get(key, key) if self.rename.get(key) not in row else key): row[key] for key in row}


def require_column(row: dict[str, Any], name: str, where: str) -> Any:
    """The row's value. Raises DataError with the columns that are there."""
    if row.get(name) is None:
        raise DataError(f"{where}: column '{name}' is missing. Found: {', '.join(row) or 'none'}.")
    return row[name]


def load_benchmark(name: str) -> Benchmark:
    """A built-in benchmark by name, or one from a YAML file.

    Raises:
        DataError: there is no such benchmark, or the file has unknown or missing keys.
    """
    path = BUILT_IN / f"{name}.yaml"
    if not path.is_file():
        path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(sorted(file.stem for file in BUILT_IN.glob("*.yaml")))
        raise DataError(f"--benchmark {name}: neither a built-in benchmark ({known}) nor a YAML file.")
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: no readable YAML ({' '.join(str(error).split())[:200]}).") from error
    return _from_document(document, path)


def _from_document(document: Any, path: Path) -> Benchmark:
    known = {item.name: item for item in fields(Benchmark)}
    if not isinstance(document, dict):
        raise DataError(f"{path}: expected a mapping with the keys {', '.join(known)}.")
    unknown = [str(key) for key in document if key not in known]
    required = [n for n, item in known.items() if item.default is MISSING and item.default_factory is MISSING]
    missing = [name for name in required if not document.get(name)]
    if unknown or missing:
        what = f"unknown key '{unknown[0]}'" if unknown else f"key '{missing[0]}' is missing"
        raise DataError(f"{path}: {what}. Keys: {', '.join(known)}; required: {', '.join(required)}.")
    return Benchmark(**document)
