"""Fields of the ``s2l:`` block. Types are checked from the annotations, ranges from :func:`limited`.

A new feature adds one dataclass here and one field to :class:`S2LConfig`; the parser needs no change.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Limits:
    """Allowed range of a number; None leaves a side open."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None

    def describe(self) -> str:
        sides = ((">=", self.at_least), (">", self.above), ("<=", self.at_most))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in sides if bound is not None)

    def allow(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
        )


def limited(
    default: Any, *, at_least: float | None = None, above: float | None = None, at_most: float | None = None
) -> Any:
    """A dataclass field with a range."""
    return field(default=default, metadata={"limits": Limits(at_least, above, at_most)})


@dataclass(frozen=True)
class ExplorerConfig:
    """S2L-PO: a smaller sibling samples the first sessions of every group.

    ``model_path`` is a Hugging Face folder or hub id. ``placement: dedicated`` gives the explorer GPUs of its own
    (``nnodes * n_gpus_per_node``). ``mix_steps`` is T_mix. Sampling values are those of the authors' scripts.
    ``rollout_overrides`` holds keys of ``actor_rollout_ref.rollout`` for the explorer's engine only.
    """

    model_path: str
    placement: Literal["dedicated"] = "dedicated"
    nnodes: int = limited(1, at_least=1)
    n_gpus_per_node: int = limited(1, at_least=1)
    tensor_model_parallel_size: int = limited(1, at_least=1)
    mix_steps: int = limited(8, at_least=1)
    temperature: float = limited(0.7, at_least=0)
    top_p: float = limited(0.95, above=0, at_most=1)
    top_k: int = limited(-1, at_least=-1)
    baseline: Literal["union", "per_source"] = "union"
    correction: Literal["none", "truncated_is"] = "none"
    is_cap: float = limited(2.0, above=0)
    rollout_overrides: dict[str, Any] = field(default_factory=dict)

    @property
    def n_gpus(self) -> int:
        return self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True)
class RolloutOptions:
    """``poll_interval_s``: seconds between looks for finished groups; None keeps verl's own 2 s."""

    poll_interval_s: float | None = limited(None, above=0)


@dataclass(frozen=True)
class S2LConfig:
    """The whole block. A feature that is None is off."""

    explorer: ExplorerConfig | None = None
    rollout: RolloutOptions = field(default_factory=RolloutOptions)

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON; :func:`s2l_ext.config.parse_s2l` reads them back."""
        return dataclasses.asdict(self)
