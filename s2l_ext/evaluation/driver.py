"""What ``s2l eval`` and ``s2l explore`` share: read the problems, draw the responses that are missing, grade them."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from s2l_ext.data import traces
from s2l_ext.data.hub import local_file
from s2l_ext.data.tokenizers import NO_TRUST, Trust
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.benchmarks import Benchmark, Problem
from s2l_ext.evaluation.engines import Engine, Machine, Request, Response, Sampling, require_at_least, sample_seed
from s2l_ext.evaluation.grading import Grade, Reward, grade, load_reward, rewarded
from s2l_ext.evaluation.model_folder import Model, open_model, require_room
from s2l_ext.evaluation.problems import read_problems

WAITING = 1024
"""Responses that may wait for their grade before drawing pauses."""
T = TypeVar("T")


@dataclass(frozen=True)
class Job:
    """What to sample.

    Attributes:
        model: folder or hub id.
        data: verl parquet files; or, when ``benchmark`` says how to read them, JSON lines, CSV, parquet, or
            ``hf://owner/name[:config][@split]``.
        out: where responses are kept.
        limit: first problems of every file only.
        drop_repeats: of rows that are the same problem the first stays.
        reward: ``package.module:function``; None chooses by data source.
        chat_options: keyword arguments of the chat template.
        trust: whether code of the model's folder may run.
    """

    model: str
    data: tuple[Path | str, ...]
    out: Path
    sampling: Sampling = field(default_factory=Sampling)
    machine: Machine = field(default_factory=Machine)
    limit: int | None = None
    drop_repeats: bool = False
    reward: str | None = None
    benchmark: Benchmark | None = None
    chat_options: dict[str, Any] = field(default_factory=dict)
    trust: Trust = NO_TRUST

    def check(self) -> None:
        """Raise ConfigError for settings that cannot be, alone or together; no file is opened."""
        self.sampling.check()
        for name, value in (("limit", self.limit), ("tensor-parallel", self.machine.tensor_parallel)):
            require_at_least(name, value, 1)
        remote = [data for data in self.data if isinstance(data, str)]
        if remote and self.benchmark is None:
            raise ConfigError(f"--data {remote[0]} needs --benchmark NAME or FILE.yaml: how its rows become problems.")


@dataclass(frozen=True)
class Inputs:
    """Everything that is read before a model is loaded; by problem id. ``functions`` has rewards by the name in a
    problem's ``reward``, ``prompts`` token ids; ``positions`` counts tokens of the longest prompt and response
    together."""

    files: tuple[Path, ...]
    problems: dict[str, Problem]
    functions: dict[str, Reward]
    model: Model
    prompts: dict[str, list[int]]
    positions: int

    def graded(self, response: Response) -> tuple[Response, str, Grade]:
        """A response with its text and grade. Thinking that the prompt opened and nothing closed holds no answer."""
        problem = self.problems[response.request.prompt_id]
        text = self.model.decode(response.token_ids).encode("utf-8", errors="replace").decode()
        prompt = self.model.decode(self.prompts[problem.id][-traces.TAIL_TOKENS :]).rstrip()
        unfinished = prompt.endswith(traces.OPEN) and traces.CLOSE not in text
        judged = f"{traces.OPEN}\n{text}" if unfinished else text
        return response, text, grade(self.functions[str(problem.reward)], problem, judged)


def open_inputs(job: Job) -> Inputs:
    """Raises ConfigError or DataError for a model, data or a reward that cannot be used."""
    files = tuple(local_file(data, "--data", prefer="test") for data in job.data)
    problems = rewarded(read_problems(files, job.benchmark, job.limit, job.drop_repeats), job.reward)
    functions = {name: load_reward(name) for name in sorted({str(problem.reward) for problem in problems.values()})}
    model = open_model(job.model, trust=job.trust)
    prompts = {name: model.prompt_ids(problem.messages, job.chat_options) for name, problem in problems.items()}
    positions = require_room(model, max(map(len, prompts.values())), job.sampling.max_tokens)
    return Inputs(files, problems, functions, model, prompts, positions)


@dataclass(frozen=True)
class SamplingReport:
    """What one run added: responses and their tokens, in how many seconds of drawing; and what was there before."""

    responses: int = 0
    tokens: int = 0
    seconds: float = 0.0
    before: int = 0


def draw(
    job: Job,
    inputs: Inputs,
    there: Callable[[str, int], bool],
    keep: Callable[[Response, str, Grade], None],
    open_engine: Callable[[], Engine],
    progress: bool,
) -> SamplingReport:
    """Draw what is missing, grade it beside the drawing, and keep it; a bar counts responses and tokens. ``there``:
    whether a problem's response of that number is kept already."""
    missing = list(_missing_requests(job.sampling, inputs.prompts, there))
    total = len(inputs.prompts) * job.sampling.n
    if not missing:
        return SamplingReport(before=total)
    engine = open_engine()
    started, tokens = time.monotonic(), 0
    try:
        with (
            tqdm(total=total, initial=total - len(missing), unit="response", disable=not progress) as bar,
            closing(graded(inputs.graded, engine.draw(missing), min(8, os.cpu_count() or 1))) as every,
        ):
            for response, text, found in every:
                keep(response, text, found)
                tokens += len(response.token_ids)
                bar.set_postfix_str(f"{tokens / (time.monotonic() - started):.0f} tokens/s", refresh=False)
                bar.update()
    finally:
        engine.close()
    return SamplingReport(len(missing), tokens, time.monotonic() - started, total - len(missing))


def _missing_requests(
    sampling: Sampling, prompts: dict[str, list[int]], there: Callable[[str, int], bool]
) -> Iterator[Request]:
    """Prompt by prompt, so that an engine computes a prompt once for all its responses."""
    for name, ids in prompts.items():
        for index in range(sampling.n):
            if not there(name, index):
                yield Request(name, index, ids, sample_seed(sampling.seed, name, index))


def graded(
    grade_one: Callable[[Response], T], drawn: Iterable[list[Response]], workers: int, waiting: int = WAITING
) -> Generator[T, None, None]:
    """Every response of ``drawn`` graded, in the order in which grades are ready. Drawing pauses while more than
    ``waiting`` have no grade.

    Threads grade, as verl's reward loop does: a slow reward must not hold the engines up, nor a fast engine fill the
    memory. When drawing ends with an error, what was drawn before is graded all the same.
    """
    threads, source = ThreadPoolExecutor(workers, thread_name_prefix="grade"), iter(drawn)
    done: queue.SimpleQueue[Future[T]] = queue.SimpleQueue()
    error: BaseException | None = None
    count = 0
    try:
        while True:
            try:
                responses = next(source)
            except BaseException as failed:
                error = failed
                break
            for response in responses:
                threads.submit(grade_one, response).add_done_callback(done.put)
                count += 1
            while count > waiting or (count and not done.empty()):
                yield done.get().result()
                count -= 1
        for _ in range(count):
            yield done.get().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)
    if error is not None and not isinstance(error, StopIteration):
        raise error
