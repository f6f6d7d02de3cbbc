"""One engine or several: who takes requests and hands back responses as they finish."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Protocol

from s2l_ext.evaluation.engines import Machine, Request, Response, Sampling, VLLMEngine
from s2l_ext.evaluation.model_folder import Model
from s2l_ext.training.preflight import current_cluster, keep_own_ray_here


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


def dtype_of(machine: Machine, placement: Placement) -> str:
    """The number type the engines compute with, as a fingerprint names it."""
    if placement.address is None or machine.dtype != "auto":
        return machine.real_dtype
    from s2l_ext.explore.ray_pool import cpu_only

    return "float32" if cpu_only(placement.address) else "auto"


class Pool(Protocol):
    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        """Responses as they finish, a few at a time; an empty list now and then."""

    def close(self) -> None: ...


@dataclass(frozen=True)
class Setup:
    """What an engine is made of. ``positions``: tokens of the longest prompt and response together."""

    model: Model
    sampling: Sampling
    machine: Machine
    positions: int

    def engine(self) -> VLLMEngine:
        return VLLMEngine(self.model, self.sampling, self.machine, self.positions, log_probs=True)


def open_pool(setup: Setup, placement: Placement) -> Pool:
    """Load the model, as often as ``placement`` says. Raises ResourceError where it cannot be."""
    if not placement.uses_ray:
        return LocalPool(setup.engine())
    if placement.address is None and current_cluster() is None:
        keep_own_ray_here()
    from s2l_ext.explore.ray_pool import RayPool

    return RayPool(setup, placement)


class LocalPool:
    """One engine in this process. It is kept full and no fuller: vLLM does not hold a million requests at once."""

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine = engine

    def draw(self, requests: Iterable[Request]) -> Iterator[list[Response]]:
        source = iter(requests)
        while True:
            self.engine.add(list(islice(source, self.engine.room)))
            if not self.engine.unfinished:
                return
            yield self.engine.step()

    def close(self) -> None:
        self.engine.close()
