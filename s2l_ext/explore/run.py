"""Filling a store: read the prompts, see what is missing, draw and grade it."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from s2l_ext import __version__
from s2l_ext.config.model_files import is_local, parameter_count
from s2l_ext.data.tokenizers import NO_TRUST, Trust, digest, snapshot, token_digest
from s2l_ext.evaluation.benchmarks import Benchmark
from s2l_ext.evaluation.engines import (
    LOGPROBS_MODE,
    Machine,
    Request,
    Response,
    Sampling,
    require_at_least,
    sample_seed,
)
from s2l_ext.evaluation.grading import Reward, grade, load_reward, rewarded
from s2l_ext.evaluation.model_folder import Model, model_digest, open_model, require_room
from s2l_ext.evaluation.problems import Problem, read_problems
from s2l_ext.explore.graders import Graders
from s2l_ext.explore.pools import Placement, Pool, Setup, dtype_of, open_pool
from s2l_ext.rewards.registry import place_of
from s2l_ext.store.reader import Rollout
from s2l_ext.store.writer import StoreWriter
from s2l_ext.utils.digests import sha256_file

OpenPool = Callable[[Setup, Placement], Pool]


@dataclass(frozen=True)
class Exploration:
    """What to draw.

    Attributes:
        model: folder or hub id.
        data: verl parquet files, or JSON lines when ``benchmark`` says how to read them.
        out: the store's folder.
        only_missing: ask a store that is there for more responses, or for other prompts, than before.
        limit: first problems of every file only.
        drop_repeats: of rows that are the same problem the first stays.
        reward: ``package.module:function``; None chooses by data source.
        chat_options: keyword arguments of the chat template.
        trust: whether code of the model's folder may run.
    """

    model: str
    data: tuple[Path, ...]
    out: Path
    sampling: Sampling = field(default_factory=lambda: Sampling(n=32, temperature=0.7))
    machine: Machine = field(default_factory=Machine)
    placement: Placement = field(default_factory=Placement)
    only_missing: bool = False
    limit: int | None = None
    drop_repeats: bool = False
    reward: str | None = None
    benchmark: Benchmark | None = None
    chat_options: dict[str, Any] = field(default_factory=dict)
    trust: Trust = NO_TRUST


@dataclass(frozen=True)
class Drawn:
    """What one run added: responses and their tokens, in how many seconds of drawing; and what was there before."""

    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: int = 0


def check(job: Exploration) -> None:
    """Raise ConfigError for settings that cannot be, alone or together; no file is opened."""
    job.sampling.check()
    counts = {"limit": job.limit, "engines": job.placement.engines, "tensor-parallel": job.machine.tensor_parallel}
    for name, value in counts.items():
        require_at_least(name, value, 1)


def explore(job: Exploration, progress: bool = True, open_engines: OpenPool = open_pool) -> Drawn:
    """Fill a store, or go on filling it. A kill at any moment loses no response that was graded.

    Args:
        open_engines: who draws; tests hand in an engine without a model.

    Raises:
        ConfigError, DataError, StateMismatch, ResourceError: with the value, the reason and the fix.
    """
    check(job)
    inputs = _open(job)
    with StoreWriter(job.out, _fingerprint(job, inputs), job.sampling.n, inputs.digests, job.only_missing) as writer:
        before = sum(map(len, writer.have.values()))
        drawn = _Work(job, inputs, writer, before).draw(progress, open_engines)
        writer.finish()
    return drawn


@dataclass(frozen=True)
class _Inputs:
    """Everything that is read before a model is loaded; by problem id."""

    problems: dict[str, Problem]
    rewards: dict[str, str]
    functions: dict[str, Reward]
    model: Model
    prompts: dict[str, list[int]]
    positions: int

    @property
    def digests(self) -> dict[str, str]:
        return {name: self._digest(name) for name in self.problems}

    def _digest(self, name: str) -> str:
        """16 hex digits of what a response is drawn and graded with."""
        problem = self.problems[name]
        parts = [self.prompts[name], problem.ground_truth, problem.data_source, self.rewards[name]]
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]

    def graded(self, response: Response) -> Rollout:
        request = response.request
        text = self.model.decode(response.token_ids).encode("utf-8", errors="replace").decode()
        found = grade(self.functions[self.rewards[request.prompt_id]], self.problems[request.prompt_id], text)
        assert response.log_probs is not None
        return Rollout(
            prompt_id=request.prompt_id,
            index=request.index,
            seed=request.seed,
            prompt_ids=request.prompt_ids,
            token_ids=response.token_ids,
            log_probs=response.log_probs,
            truncated=response.truncated,
            score=found.score,
            acc=float(found.correct),
            text=text,
        )


def _open(job: Exploration) -> _Inputs:
    found = read_problems(job.data, job.benchmark, job.limit, job.drop_repeats)
    problems, rewards = rewarded(found, job.reward)
    functions = {name: load_reward(name) for name in sorted(set(rewards.values()))}
    model = open_model(job.model, trust=job.trust)
    prompts = {name: model.prompt_ids(problem.messages, job.chat_options) for name, problem in problems.items()}
    positions = require_room(model, max(map(len, prompts.values())), job.sampling.max_tokens)
    return _Inputs(problems, rewards, functions, model, prompts, positions)


def _fingerprint(job: Exploration, inputs: _Inputs) -> dict[str, Any]:
    """What responses depend on (writer.IDENTITY), and where they came from. Folders may move: names only."""
    s, tokens = job.sampling, snapshot(str(inputs.model.folder), "--model", job.trust)
    return {
        "model": model_digest(inputs.model.folder),
        "model_name": Path(job.model).name if is_local(job.model) else job.model,
        "parameters": parameter_count(str(inputs.model.folder)),
        "tokenizer": digest(tokens),
        "tokens": token_digest(tokens),
        "dtype": dtype_of(job.machine, job.placement),
        "log_probs": LOGPROBS_MODE,
        "sampling": {
            "temperature": s.temperature,
            "top_p": s.top_p,
            "top_k": s.top_k,
            "max_tokens": s.max_tokens,
            "seed": s.seed,
            "chat_options": job.chat_options,
        },
        "data": [{"name": path.name, "sha256": sha256_file(path)} for path in job.data],
        "reward": sorted({place_of(name) for name in inputs.functions}),
        "package_version": __version__,
    }


@dataclass
class _Work:
    """Drawing, grading beside it, and keeping; a bar counts responses and tokens."""

    job: Exploration
    inputs: _Inputs
    writer: StoreWriter
    before: int

    def draw(self, progress: bool, open_engines: OpenPool) -> Drawn:
        total = sum(1 for _ in self._missing())
        if not total:
            return Drawn(before=self.before)
        job, inputs = self.job, self.inputs
        pool = open_engines(Setup(inputs.model, job.sampling, job.machine, inputs.positions), job.placement)
        asked = len(inputs.problems) * job.sampling.n
        try:
            with tqdm(total=asked, initial=asked - total, unit="response", disable=not progress) as bar:
                return self._fill(pool, bar)
        finally:
            pool.close()

    def _fill(self, pool: Pool, bar: Any) -> Drawn:
        started, count, tokens = time.monotonic(), 0, 0
        with Graders(self.inputs.graded, workers=min(8, os.cpu_count() or 1)) as graders:
            for rollout in graders.grade(pool.draw(list(self._missing()))):
                self.writer.add(rollout)
                count, tokens = count + 1, tokens + len(rollout.token_ids)
                bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
                bar.update()
        return Drawn(count, tokens, time.monotonic() - started, self.before)

    def _missing(self) -> Iterator[Request]:
        """Prompt by prompt, so that an engine computes a prompt once for all its responses."""
        base = self.job.sampling.seed
        for name, ids in self.inputs.prompts.items():
            there = self.writer.have.get(name, set())
            for index in range(self.job.sampling.n):
                if index not in there:
                    yield Request(name, index, ids, sample_seed(base, name, index))
