"""One evaluation: read problems, draw and grade what is missing, and write the numbers."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2l_ext import __version__
from s2l_ext.data import tokenizers
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS, Benchmark
from s2l_ext.evaluation.engines import (
    ENGINES,
    Machine,
    Request,
    Response,
    Sampling,
    open_engine,
    require_at_least,
    sample_seed,
)
from s2l_ext.evaluation.grading import Reward, grade, load_reward, rewarded
from s2l_ext.evaluation.metrics import by_group, summarize
from s2l_ext.evaluation.model_folder import Model, data_digest, model_digest, open_model, require_room
from s2l_ext.evaluation.problems import Problem, read_problems
from s2l_ext.evaluation.rows import local_file
from s2l_ext.evaluation.samples import Outcome, Sample, SampleFile, read_samples
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.secrets import masked

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Evaluation:
    """What to evaluate.

    Attributes:
        model: folder or hub id.
        data: verl parquet files; or, when ``benchmark`` says how to read them, JSON lines, CSV, parquet, or
            ``hf://owner/name[:config][@split]``.
        out: the result; samples are kept beside it in ``<out>.samples.jsonl``.
        limit: first problems of every file only.
        drop_repeats: of rows that are the same problem the first stays.
        ks: of pass@k and maj@k; None is every k up to n.
        reward: ``package.module:function``; None chooses by data source.
        chat_options: keyword arguments of the chat template.
        divergence_to: another model; adds the reverse KL to it on this model's responses.
        teacher_rollouts: samples of that model; adds the forward KL on them.
    """

    model: str
    data: tuple[Path | str, ...]
    out: Path
    sampling: Sampling = field(default_factory=Sampling)
    engine: str = "vllm"
    machine: Machine = field(default_factory=Machine)
    limit: int | None = None
    drop_repeats: bool = False
    ks: tuple[int, ...] | None = None
    reward: str | None = None
    benchmark: Benchmark | None = None
    chat_options: dict[str, Any] = field(default_factory=dict)
    divergence_to: str | None = None
    teacher_rollouts: Path | None = None
    trust: tokenizers.Trust = tokenizers.NO_TRUST

    @property
    def samples_path(self) -> Path:
        return self.out.with_name(f"{self.out.name}.samples.jsonl")


def check(job: Evaluation) -> None:
    """Raise ConfigError for settings that cannot be, alone or together; no file is opened."""
    job.sampling.check()
    require_at_least("limit", job.limit, 1)
    wrong = [k for k in job.ks or () if not 1 <= k <= job.sampling.n]
    if wrong:
        raise ConfigError(
            f"--k {wrong[0]}: pass@{wrong[0]} needs at least {wrong[0]} samples; --n is {job.sampling.n}."
        )
    if job.engine not in ENGINES:
        raise ConfigError(f"--engine {job.engine}: expected one of {', '.join(ENGINES)}.")
    remote = [data for data in job.data if isinstance(data, str)]
    if remote and job.benchmark is None:
        raise ConfigError(f"--data {remote[0]} needs --benchmark NAME or FILE.yaml: how its rows become problems.")
    if job.teacher_rollouts and not job.divergence_to:
        raise ConfigError("--teacher-rollouts needs --divergence-to, the model that drew them.")


def evaluate(job: Evaluation, progress: bool = True) -> dict[str, Any]:
    """Run, or go on with, an evaluation; write ``job.out`` and return what it holds.

    Raises:
        ConfigError, DataError, StateMismatch, ResourceError: with the value, the reason and the fix.
    """
    check(job)
    started = time.monotonic()
    inputs = _open(job)
    fingerprints = _fingerprints(job, inputs)
    with SampleFile(job.samples_path, _identity(fingerprints)) as store:
        _Work(job, inputs, store).draw(_missing(job, inputs.prompts, store), progress)
        drawn = [[store.outcomes[name, index] for index in range(job.sampling.n)] for name in inputs.problems]
    result = _result(job, list(inputs.problems.values()), drawn, fingerprints)
    if inputs.teacher is not None:
        result |= _divergences(job, inputs, inputs.teacher, progress)
        fingerprints["divergence_to"] = model_digest(inputs.teacher.folder)
    result["seconds"] = round(time.monotonic() - started, 2)
    _write(job.out, result)
    return result


@dataclass(frozen=True)
class _Inputs:
    """Everything that is read before a model is loaded; by problem id."""

    files: tuple[Path, ...]
    problems: dict[str, Problem]
    rewards: dict[str, str]
    functions: dict[str, Reward]
    model: Model
    teacher: Model | None
    prompts: dict[str, list[int]]


def _open(job: Evaluation) -> _Inputs:
    files = tuple(map(local_file, job.data))
    found = read_problems(files, job.benchmark, job.limit, job.drop_repeats)
    problems, rewards = rewarded(found, job.reward)
    functions = {name: load_reward(name) for name in sorted(set(rewards.values()))}
    model = open_model(job.model, trust=job.trust)
    teacher = None if job.divergence_to is None else _open_teacher(job, model)
    prompts = {name: model.prompt_ids(problem.messages, job.chat_options) for name, problem in problems.items()}
    return _Inputs(files, problems, rewards, functions, model, teacher, prompts)


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


def _divergences(job: Evaluation, inputs: _Inputs, teacher: Model, progress: bool) -> dict[str, Any]:
    from s2l_ext.evaluation.divergence import divergences

    n, every = job.sampling.n, read_samples(job.samples_path)
    own = [sample for sample in every if sample.prompt_id in inputs.prompts and sample.index < n]
    return divergences(inputs.model, teacher, own, job.teacher_rollouts, job.machine.on_cpu, progress)


def _missing(job: Evaluation, prompts: dict[str, list[int]], store: SampleFile) -> list[Request]:
    base, keys = job.sampling.seed, ((name, index) for name in prompts for index in range(job.sampling.n))
    return [Request(n, i, prompts[n], sample_seed(base, n, i)) for n, i in keys if (n, i) not in store.outcomes]


@dataclass
class _Work:
    """Drawing and grading; a bar counts samples and tokens."""

    job: Evaluation
    inputs: _Inputs
    store: SampleFile

    def draw(self, requests: Sequence[Request], progress: bool) -> None:
        longest = max(map(len, self.inputs.prompts.values()))
        positions = require_room(self.inputs.model, longest, self.job.sampling.max_tokens)
        if not requests:
            return
        engine = open_engine(self.job.engine, self.inputs.model, self.job.sampling, self.job.machine, positions)
        total = len(self.inputs.problems) * self.job.sampling.n
        try:
            with tqdm(total=total, initial=total - len(requests), unit="sample", disable=not progress) as bar:
                started, tokens = time.monotonic(), 0
                for response in engine.sample(requests):
                    self.store.add(self._graded(response))
                    tokens += len(response.token_ids)
                    bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
                    bar.update()
        finally:
            engine.close()

    def _graded(self, response: Response) -> Sample:
        request, inputs = response.request, self.inputs
        text = inputs.model.decode(response.token_ids)
        reward = inputs.functions[inputs.rewards[request.prompt_id]]
        found = grade(reward, inputs.problems[request.prompt_id], text)
        return Sample(
            prompt_id=request.prompt_id,
            index=request.index,
            prompt_ids=request.prompt_ids,
            token_ids=response.token_ids,
            text=text,
            truncated=response.truncated,
            score=found.score,
            correct=found.correct,
            answer=found.answer,
            timed_out=found.timed_out,
        )


def _fingerprints(job: Evaluation, inputs: _Inputs) -> dict[str, Any]:
    return {
        "model": model_digest(inputs.model.folder),
        "data": data_digest(inputs.files),
        "benchmark": None if job.benchmark is None else job.benchmark.fingerprint(),
        "limit": job.limit,
        "reward": list(inputs.functions),
        "engine": job.engine,
        "dtype": job.machine.real_dtype,
        "sampling": {**job.sampling.as_settings(), "chat_options": job.chat_options},
        "package_version": __version__,
    }


def _identity(fingerprints: dict[str, Any]) -> dict[str, Any]:
    """What each sample depends on: more samples a problem, or more problems, leave those there as they are."""
    plain = {name: value for name, value in fingerprints.items() if name not in ("sampling", "limit")}
    return plain | {name: value for name, value in fingerprints["sampling"].items() if name != "n"}


def _result(
    job: Evaluation, problems: Sequence[Problem], outcomes: Sequence[Sequence[Outcome]], fingerprints: dict[str, Any]
) -> dict[str, Any]:
    rows = [_row(problem, drawn) for problem, drawn in zip(problems, outcomes, strict=True)]
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


def _row(problem: Problem, drawn: Sequence[Outcome]) -> dict[str, Any]:
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


def _write(path: Path, result: dict[str, Any]) -> None:
    try:
        write_atomically(path, json.dumps(result, indent=1) + "\n")
    except OSError as error:
        raise DataError(
            f"{path}: cannot be written ({error.strerror}). The samples are kept; make room and run the same command "
            "again."
        ) from error
