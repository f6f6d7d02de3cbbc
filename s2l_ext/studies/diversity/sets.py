"""Sets of samples to compare: each model's, and the learner's at high temperature."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.samples import Sample, read_fingerprint, read_samples

LEARNER, EXPLORER, NOISE = "learner", "explorer", "token_noise"
Ids = NDArray[np.int32]
NUMBER = re.compile(r"\d+(\.\d+)?(e[+-]?\d+)?")


@dataclass(frozen=True)
class Row:
    """One response; ``token_ids`` (T,) end with the stop token unless it was truncated."""

    token_ids: Ids
    text: str
    truncated: bool
    score: float
    correct: bool
    answer: str | None


@dataclass(frozen=True)
class RowSet:
    """The first n samples of each problem, in the order of their index.

    Attributes:
        model: name of the model that drew them; ``name`` adds ``@temperature`` for the learner's noise.
        fingerprint: what the file's first line says that its samples depend on.
        prompts: token ids by problem.
    """

    name: str
    model: str
    role: str
    path: Path
    fingerprint: dict[str, Any]
    prompts: dict[str, Ids]
    rows: dict[str, list[Row]]

    @property
    def temperature(self) -> float:
        return float(self.fingerprint["temperature"])

    @property
    def every_row(self) -> list[tuple[Ids, Ids]]:
        """Prompt and response of every row, problem by problem."""
        return [(self.prompts[name], row.token_ids) for name, rows in self.rows.items() for row in rows]

    @property
    def n(self) -> int:
        return len(next(iter(self.rows.values())))


def noise_name(learner: str, temperature: float) -> str:
    return f"{learner}@{temperature:g}"


def role_of(name: str, learner: str) -> tuple[str, str]:
    """Model and role of a set by its name: ``large`` or ``large@1.5``."""
    model, at, temperature = name.partition("@")
    if not at:
        return model, LEARNER if name == learner else EXPLORER
    if model != learner or not NUMBER.fullmatch(temperature):
        raise ConfigError(
            f"{name}: '@' marks the learner at a high temperature, such as {learner}@1.5 (--learner {learner})."
        )
    return model, NOISE


def read_set(
    name: str, learner: str, path: Path, n: int | None = None, problems: Sequence[str] | None = None
) -> RowSet:
    """The samples of a file.

    Args:
        n: the first n of each problem; None takes all, which must be as many for each.
        problems: only these, in this order; None takes all of the file.

    Raises:
        ConfigError: the name says another temperature than the file.
        DataError: the file is no file of samples, a problem has too few of them, or greedy samples.
    """
    model, role = role_of(name, learner)
    found: dict[str, dict[int, Sample]] = {problem: {} for problem in problems or ()}
    for sample in read_samples(path):
        if problems is None or sample.prompt_id in found:
            found.setdefault(sample.prompt_id, {})[sample.index] = sample
    if not found:
        raise DataError(f"{path}: no samples. Run s2l eval to its end.")
    taken = _same_count(path, found) if n is None else n
    chosen = {problem: _first(path, problem, samples, taken) for problem, samples in found.items()}
    drawn = RowSet(
        name,
        model,
        role,
        path,
        read_fingerprint(path) or {},
        {problem: np.array(samples[0].prompt_ids, dtype=np.int32) for problem, samples in chosen.items()},
        {problem: [_row(path, sample) for sample in samples] for problem, samples in chosen.items()},
    )
    _refuse_temperature(drawn)
    return drawn


def _row(path: Path, s: Sample) -> Row:
    if not s.token_ids:
        raise DataError(f"{path}: sample {s.index} of problem {s.prompt_id} has no tokens. Draw it again.")
    return Row(np.array(s.token_ids, dtype=np.int32), s.text, s.truncated, s.score, s.correct, s.answer)


def _same_count(path: Path, found: Mapping[str, Mapping[int, Sample]]) -> int:
    counts = {problem: len(samples) for problem, samples in found.items()}
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    if counts[fewest] != counts[most]:
        raise DataError(
            f"{path}: problem {fewest} has {counts[fewest]} samples, {most} {counts[most]}. Run s2l eval to its end, "
            f"or take the first of each: --n {counts[fewest]}."
        )
    return counts[fewest]


def _first(path: Path, problem: str, samples: Mapping[int, Sample], n: int) -> list[Sample]:
    missing = [index for index in range(n) if index not in samples]
    if missing:
        raise DataError(
            f"{path}: problem {problem} has no sample {missing[0]} (from 0); --n is {n}. Run s2l eval with --n {n}, or "
            "lower --n."
        )
    return [samples[index] for index in range(n)]


def _refuse_temperature(drawn: RowSet) -> None:
    if not drawn.temperature > 0:
        raise DataError(f"{drawn.path}: drawn at temperature 0, so its samples are all the same. Sample with more.")
    if drawn.role == NOISE and drawn.name != noise_name(drawn.model, drawn.temperature):
        raise ConfigError(
            f"--from-samples {drawn.name}={drawn.path}: drawn at temperature {drawn.temperature:g}; name it "
            f"{noise_name(drawn.model, drawn.temperature)}."
        )


def check_comparable(sets: Sequence[RowSet]) -> None:
    """Raise DataError unless all sets have the same problems, prompts, rewards and number of samples (at least 2)."""
    first = sets[0]
    if first.n < 2:
        raise DataError(f"{first.path}: 1 sample a problem; Self-BLEU and other pairs need at least 2 (--n).")
    if len(first.rows) < 2:
        raise DataError(f"{first.path}: 1 problem; an interval over problems needs at least 2.")
    for other in sets[1:]:
        _require_same_problems(first, other)
        for what in ("data", "benchmark", "reward"):
            if first.fingerprint.get(what) != other.fingerprint.get(what):
                raise DataError(
                    f"{first.path} and {other.path} differ in {what}: {first.fingerprint.get(what)} and "
                    f"{other.fingerprint.get(what)}. Sample both with the same {what}."
                )
        if other.n != first.n:
            raise DataError(
                f"{first.path} has {first.n} samples a problem, {other.path} {other.n}. Take as many of both: --n "
                f"{min(first.n, other.n)}."
            )


def _require_same_problems(first: RowSet, other: RowSet) -> None:
    shared = first.rows.keys() & other.rows.keys()
    if first.rows.keys() != other.rows.keys():
        raise DataError(
            f"{first.path} has {len(first.rows)} problems, {other.path} {len(other.rows)}, and {len(shared)} are in "
            "both. Diversity is compared on the same problems: run s2l eval for both on the same data and --limit."
        )
    options = [each.fingerprint.get("chat_options") for each in (first, other)]
    if options[0] != options[1]:
        raise DataError(
            f"{first.path} and {other.path} were drawn with other chat options: {options[0]} and {options[1]}. Sample "
            "both with the same --chat-option."
        )


def with_other_tokens(sets: Sequence[RowSet], learner: str) -> list[str]:
    """Sets whose prompts are other tokens than the learner's: another tokenizer or chat template made them."""
    of_learner = next(drawn.prompts for drawn in sets if drawn.name == learner)
    return [
        drawn.name
        for drawn in sets
        if any(not np.array_equal(of_learner[name], ids) for name, ids in drawn.prompts.items())
    ]
