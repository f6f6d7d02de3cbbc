"""Where the engines run: one in this process, or several on a Ray cluster."""

from __future__ import annotations

import os
from dataclasses import dataclass

from s2l_ext.evaluation.engines import Engine, Machine, Setup
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


def open_pool(setup: Setup, placement: Placement) -> Engine:
    """Load the model, as often as ``placement`` says. Raises ResourceError where it cannot be."""
    if not placement.uses_ray:
        return setup.engine()
    if placement.address is None and current_cluster() is None:
        keep_own_ray_here()
    from s2l_ext.explore.ray_pool import RayPool

    return RayPool(setup, placement.engines, placement.address)
