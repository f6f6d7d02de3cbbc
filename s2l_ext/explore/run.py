"""Filling a store with the explorer's responses, by one engine in this process or several on a Ray cluster."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from s2l_ext import __version__
from s2l_ext.config.model_files import is_local, parameter_count
from s2l_ext.data.tokenizers import digest, snapshot, token_digest
from s2l_ext.evaluation.driver import Inputs, Job, SamplingReport, draw, open_inputs
from s2l_ext.evaluation.engines import LOGPROBS_MODE, Engine, Machine, Response, Sampling, Setup, require_at_least
from s2l_ext.evaluation.grading import Grade, name_and_source
from s2l_ext.evaluation.model_folder import model_digest
from s2l_ext.rewards.registry import place_of
from s2l_ext.store.reader import Rollout
from s2l_ext.store.writer import StoreWriter
from s2l_ext.training.preflight import keep_own_ray_here
from s2l_ext.utils.digests import digest_of, sha256_file
from s2l_ext.utils.ray_cluster import current_cluster


@dataclass(frozen=True)
class Placement:
    """How many engines, and the Ray cluster they run on (None: this process, or Ray started here for several)."""

    engines: int = 1
    ray_address: str | None = None

    @property
    def uses_ray(self) -> bool:
        return self.engines > 1 or self.address is not None

    @property
    def address(self) -> str | None:
        return self.ray_address or os.environ.get("RAY_ADDRESS")


@dataclass(frozen=True)
class Exploration(Job):
    """What to draw into a store, the folder ``out``. ``only_missing``: ask a store that is there for more responses, or
    for other prompts, than before."""

    sampling: Sampling = field(default_factory=lambda: Sampling(n=32, temperature=0.7))
    placement: Placement = field(default_factory=Placement)
    only_missing: bool = False


def dtype_of(machine: Machine, placement: Placement) -> str:
    """The number type the engines compute with, as a fingerprint names it."""
    if placement.address is None or machine.dtype != "auto":
        return machine.real_dtype
    from s2l_ext.explore.ray_pool import cpu_only

    return "float32" if cpu_only(placement.address) else "auto"


def open_pool(setup: Setup, placement: Placement) -> Engine:
    """Load the model, as often as ``placement`` says. Raises ResourceError where it cannot be."""
    if not placement.uses_ray:
        return setup.engine()
    if placement.address is None and current_cluster() is None:
        keep_own_ray_here()
    from s2l_ext.explore.ray_pool import RayPool

    return RayPool(setup, placement.engines, placement.address)


def check(job: Exploration) -> None:
    """Raise ConfigError for settings that cannot be, alone or together; no file is opened."""
    job.check()
    require_at_least("engines", job.placement.engines, 1)


def explore(
    job: Exploration, progress: bool = True, open_engines: Callable[[Setup, Placement], Engine] = open_pool
) -> SamplingReport:
    """Fill a store, or continue it. A kill at any moment loses no response that was graded. ``open_engines``: who
    draws; tests hand in an engine without a model. Raises S2LError."""
    check(job)
    inputs = open_inputs(job)
    setup = Setup(inputs.model, job.sampling, job.machine, inputs.positions, log_probs=True)
    rewards = {name: name_and_source(name) for name in inputs.functions}
    digests = {}
    for name, problem in inputs.problems.items():  # of what its responses are drawn and graded with
        parts = [inputs.prompts[name], problem.ground_truth, problem.data_source, rewards[str(problem.reward)]]
        digests[name] = digest_of(parts)[:16]
    with StoreWriter(job.out, _fingerprint(job, inputs), job.sampling.n, digests, job.only_missing) as writer:
        before = sum(map(len, writer.have.values()))
        drawn = draw(
            job,
            inputs,
            there=lambda name, index: index in writer.have.get(name, ()),
            keep=lambda *found: writer.add(_make_rollout(*found)),
            open_engine=lambda: open_engines(setup, job.placement),
            progress=progress,
        )
        writer.finish()
    return replace(drawn, before=before)


def _make_rollout(response: Response, text: str, found: Grade) -> Rollout:
    return Rollout(
        **vars(response.request),
        token_ids=response.token_ids,
        log_probs=response.log_probs or [],
        truncated=response.truncated,
        score=found.score,
        acc=float(found.correct),
        text=text,
    )


def _fingerprint(job: Exploration, inputs: Inputs) -> dict[str, Any]:
    """What responses depend on (writer.IDENTITY), and where they came from. Folders may move: names only."""
    sampling, tokens = job.sampling.as_settings(), snapshot(str(inputs.model.folder), "--model", job.trust)
    return {
        "model": model_digest(inputs.model.folder),
        "model_name": Path(job.model).name if is_local(job.model) else job.model,
        "parameters": parameter_count(str(inputs.model.folder)),
        "tokenizer": digest(tokens),
        "tokens": token_digest(tokens),
        "dtype": dtype_of(job.machine, job.placement),
        "log_probs": LOGPROBS_MODE,
        "sampling": {name: value for name, value in sampling.items() if name != "n"}
        | {"chat_options": job.chat_options},
        "data": [{"name": path.name, "sha256": sha256_file(path)} for path in inputs.files],
        "reward": sorted({place_of(name) for name in inputs.functions}),
        "package_version": __version__,
    }
