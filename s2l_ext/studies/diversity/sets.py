"""Sets of samples to compare: each model's, and the learner's at high temperature."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.errors import DataError
from s2l_ext.evaluation.samples import Sample, read_fingerprint, read_samples

LEARNER, EXPLORER, NOISE = "learner", "explorer", "token_noise"
Ids = Sequence[int] | np.ndarray


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
    rows: dict[str, list[Sample]]

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


def read_set(name: str, learner: str, path: Path, n: int, problems: Sequence[str]) -> RowSet:
    """The first n samples of each of these problems, in this order; the file may hold more, of an earlier run.

    Raises:
        DataError: a sample without tokens.
    """
    model, at, _ = name.partition("@")
    role = NOISE if at else LEARNER if name == learner else EXPLORER
    found: dict[str, dict[int, Sample]] = {problem: {} for problem in problems}
    for sample in read_samples(path):
        if sample.prompt_id in found:
            if not sample.token_ids:
                raise DataError(
                    f"{path}: sample {sample.index} of problem {sample.prompt_id} has no tokens. Draw it again."
                )
            found[sample.prompt_id][sample.index] = sample
    return RowSet(
        name,
        model,
        role,
        path,
        read_fingerprint(path) or {},
        {problem: samples[0].prompt_ids for problem, samples in found.items()},
        {problem: [samples[index] for index in range(n)] for problem, samples in found.items()},
    )
