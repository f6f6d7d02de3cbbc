"""One evaluation: draw and grade what is missing, and write the numbers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext import __version__
from s2l_ext.data import tokenizers
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS, Problem
from s2l_ext.evaluation.driver import Inputs, Job, draw, open_inputs
from s2l_ext.evaluation.engines import ENGINES, Engine, Response, Setup, TransformersEngine
from s2l_ext.evaluation.grading import Grade, name_and_source
from s2l_ext.evaluation.metrics import by_group, summarize
from s2l_ext.evaluation.model_folder import Model, data_digest, model_digest, open_model
from s2l_ext.evaluation.samples import Outcome, Sample, SampleFile, read_samples
from s2l_ext.utils.files import writable, write_atomically
from s2l_ext.utils.secrets import masked

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation(Job):
    """What to evaluate. The result is ``out``; samples are kept beside it in ``<out>.samples.jsonl``. ``ks`` None is
    every k up to n. ``divergence_to``, another model, adds the reverse KL to it on this model's responses;
    ``teacher_rollouts``, its samples, the forward KL on them."""

    engine: str = "vllm"
    ks: tuple[int, ...] | None = None
    divergence_to: str | None = None
    teacher_rollouts: Path | None = None

    @property
    def samples_path(self) -> Path:
        return self.out.with_name(f"{self.out.name}.samples.jsonl")


def check(job: Evaluation) -> None:
    """Raise ConfigError for settings that cannot be, alone or together; no file is opened."""
    job.check()
    wrong = [k for k in job.ks or () if not 1 <= k <= job.sampling.n]
    if wrong:
        raise ConfigError(
            f"--k {wrong[0]}: pass@{wrong[0]} needs at least {wrong[0]} samples; --n is {job.sampling.n}."
        )
    if job.engine not in ENGINES:
        raise ConfigError(f"--engine {job.engine}: expected one of {', '.join(ENGINES)}.")
    if job.teacher_rollouts and not job.divergence_to:
        raise ConfigError("--teacher-rollouts needs --divergence-to, the model that drew them.")


def evaluate(job: Evaluation, progress: bool = True) -> dict[str, Any]:
    """Run or continue an evaluation; write ``job.out`` and return what it holds. Raises S2LError."""
    check(job)
    started = time.monotonic()
    inputs = open_inputs(job)
    teacher = None if job.divergence_to is None else _open_teacher(job, inputs.model)
    fingerprints = _fingerprints(job, inputs)
    with SampleFile(job.samples_path, _identity(fingerprints)) as file:
        draw(
            job,
            inputs,
            there=lambda name, index: (name, index) in file.outcomes,
            keep=lambda *found: file.add(_make_sample(*found)),
            open_engine=lambda: open_engine(job, inputs),
            progress=progress,
        )
        drawn = [[file.outcomes[name, index] for index in range(job.sampling.n)] for name in inputs.problems]
    named = {} if teacher is None else {"divergence_to": model_digest(teacher.folder)}
    result = _make_result(job, list(inputs.problems.values()), drawn, fingerprints | named)
    if teacher is not None:
        result |= _measure_divergences(job, inputs, teacher, progress)
    result["seconds"] = round(time.monotonic() - started, 2)
    with writable(job.out.parent, "The samples are kept. Free disk space and run the same command again."):
        write_atomically(job.out, json.dumps(result, indent=1) + "\n")
    return result


def open_engine(job: Evaluation, inputs: Inputs) -> Engine:
    """Load the model. Raises ResourceError where it cannot be."""
    setup = Setup(inputs.model, job.sampling, job.machine, inputs.positions)
    return setup.engine() if job.engine == "vllm" else TransformersEngine(setup)


def _open_teacher(job: Evaluation, model: Model) -> Model:
    """Before hours of sampling, not after them, a teacher that does not fit is refused."""
    teacher = open_model(str(job.divergence_to), "--divergence-to", job.trust)
    folders = str(model.folder), str(teacher.folder)
    renders = job.teacher_rollouts is not None
    for warning in tokenizers.compare(*folders, "--model", "--divergence-to", job.trust, both_render=renders):
        print(f"s2l: warning: {warning}", file=sys.stderr)
    if job.teacher_rollouts is not None:
        next(read_samples(job.teacher_rollouts), None)
    return teacher


def _measure_divergences(job: Evaluation, inputs: Inputs, teacher: Model, progress: bool) -> dict[str, Any]:
    from s2l_ext.evaluation.divergence import divergences

    n, every = job.sampling.n, read_samples(job.samples_path)
    own = [sample for sample in every if sample.prompt_id in inputs.prompts and sample.index < n]
    return divergences(inputs.model, teacher, own, job.teacher_rollouts, job.machine.on_cpu, progress)


def _make_sample(response: Response, text: str, found: Grade) -> Sample:
    asked = response.request
    return Sample(
        asked.prompt_id, asked.index, asked.prompt_ids, response.token_ids, text, response.truncated, **vars(found)
    )


def _fingerprints(job: Evaluation, inputs: Inputs) -> dict[str, Any]:
    return {
        "model": model_digest(inputs.model.folder),
        "data": data_digest(inputs.files),
        "benchmark": None if job.benchmark is None else job.benchmark.fingerprint(),
        "limit": job.limit,
        "reward": list(map(name_and_source, inputs.functions)),
        "engine": job.engine,
        "dtype": job.machine.real_dtype,
        "sampling": {**job.sampling.as_settings(), "chat_options": job.chat_options},
        "package_version": __version__,
    }


def _identity(fingerprints: dict[str, Any]) -> dict[str, Any]:
    """What each sample depends on: more samples a problem, or more problems, leave those there as they are."""
    plain = {name: value for name, value in fingerprints.items() if name not in ("sampling", "limit")}
    return plain | {name: value for name, value in fingerprints["sampling"].items() if name != "n"}


def _make_result(
    job: Evaluation, problems: Sequence[Problem], outcomes: Sequence[Sequence[Outcome]], fingerprints: dict[str, Any]
) -> dict[str, Any]:
    rows = [_count_problem(problem, drawn) for problem, drawn in zip(problems, outcomes, strict=True)]
    ks = job.ks or tuple(range(1, job.sampling.n + 1))
    sources = sorted({problem.data_source for problem in problems})
    by_source = {name: summarize([row for row in rows if row["data_source"] == name], ks) for name in sources}
    shown = [{k: v for k, v in row.items() if k not in ("answers", "correct", "scores")} for row in rows]
    return {
        "schema_version": SCHEMA_VERSION,
        **masked({"model": job.model, "data": [str(path) for path in job.data]}),
        **summarize(rows, ks),
        "num_timed_out": sum(row["num_timed_out"] for row in rows),
        "by_data_source": by_source,
        **{
            f"by_{column}": by_group(rows, column, ks) for column in GROUP_COLUMNS if any(column in row for row in rows)
        },
        "fingerprints": masked(fingerprints),
        "problems": shown,
    }


def _count_problem(problem: Problem, drawn: Sequence[Outcome]) -> dict[str, Any]:
    return {
        "prompt_id": problem.id,
        "data_source": problem.data_source,
        **problem.groups,
        "num_samples": len(drawn),
        "num_correct": sum(sample.correct for sample in drawn),
        "num_truncated": sum(sample.truncated for sample in drawn),
        "num_timed_out": sum(sample.timed_out for sample in drawn),
        "lengths": [sample.length for sample in drawn],
        "answers": [sample.answer for sample in drawn],
        "correct": [sample.correct for sample in drawn],
        "scores": [sample.score for sample in drawn],
    }
