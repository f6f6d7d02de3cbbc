"""The block ``s2l.explorer``: live servers, or rollouts sampled before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from s2l_ext.config.limits import limited
from s2l_ext.methods.explorer.schedule import SCHEDULES, Schedule


@dataclass(frozen=True, kw_only=True)
class ExplorerConfig:
    """S2L-PO: a frozen model, mostly a smaller sibling, samples the first sessions of every group."""

    source: str
    """``live``: the explorer samples during the run. ``offline``: its responses come from a store."""
    schedule: Literal["linear", "hard_switch", "constant"] = "linear"
    """The explorer's share over the steps. ``linear``: 1 at step 1, 0 from step ``mix_steps``. ``hard_switch``:
    every session up to step ``mix_steps``, none after it. ``constant``: every session to the end, as a teacher's
    in the warm-up of sparse-to-dense."""
    mix_steps: int = limited(8, at_least=1)
    """T_mix: the step at which the explorer's share reaches 0; with ``hard_switch`` the explorer's last step.
    ``constant`` does not read it."""
    baseline: Literal["union", "per_source"] = "union"
    """Rows whose mean reward is subtracted. ``union``: the whole group. ``per_source``: the rows of the same
    sampler."""
    correction: Literal["none", "truncated_is"] = "none"
    """``none``: the PPO ratio of every row starts at 1. ``truncated_is``: explorer rows are weighted by
    min(p_learner / p_explorer, ``is_cap``) per token."""
    is_cap: float = limited(2.0, above=0)
    """Upper bound of the importance weight of ``truncated_is``."""

    @property
    def n_gpus(self) -> int:
        """GPUs of its own; stored rollouts and an explorer on the learner's need none."""
        return 0

    def build(self, group_size: int) -> Schedule:
        """Explorer sessions of a group, step by step."""
        return SCHEDULES[self.schedule](self.mix_steps, group_size)


@dataclass(frozen=True, kw_only=True)
class LiveExplorer(ExplorerConfig):
    """The explorer samples during the run, on its own servers. The authors' scripts have these sampling values."""

    source: Literal["live"] = "live"
    model_path: str
    """Folder or hub id of the explorer's model. It shares the learner's tokenizer."""
    placement: Literal["dedicated", "colocated"] = "dedicated"
    """``dedicated``: the explorer has its own GPUs (``nnodes * n_gpus_per_node``). ``colocated``: it samples on
    the learner's GPUs and sleeps during updates."""
    nnodes: int = limited(1, at_least=1)
    """Nodes with explorer GPUs."""
    n_gpus_per_node: int = limited(1, at_least=1)
    """Explorer GPUs of each such node."""
    tensor_model_parallel_size: int = limited(1, at_least=1)
    """GPUs that share one copy of the explorer."""
    temperature: float = limited(0.7, at_least=0)
    """Sampling temperature of the explorer."""
    top_p: float = limited(0.95, above=0, at_most=1)
    """Nucleus of the explorer's sampling."""
    top_k: int = limited(-1, at_least=-1)
    """Most likely tokens that the explorer samples from; -1 is all."""
    rollout_overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of ``actor_rollout_ref.rollout`` for the explorer's engine only."""
    on_failure: Literal["fail", "wait", "learner"] = "fail"
    """When a server dies or hangs. ``fail``: the run ends. ``wait``: sessions wait for the restart. ``learner``:
    the learner samples them."""
    max_restarts: int = limited(3, at_least=0)
    """Restarts of explorer servers in the whole run."""
    restart_backoff_s: float = limited(10.0, at_least=0)
    """Seconds before the first restart; twice as long before each further one."""
    start_timeout_s: float = limited(900.0, above=0)
    """Seconds that a restart, or a colocated server's turn, may take. Of the first start only the placing of its GPUs
    is limited."""
    health_interval_s: float = limited(15.0, above=0)
    """Seconds between health questions to each server."""
    health_timeout_s: float = limited(60.0, above=0)
    """A server that does not answer a health question in so many seconds has failed."""
    request_timeout_s: float = limited(1800.0, above=0)
    """A server that does not finish a request in so many seconds has failed."""

    @property
    def is_colocated(self) -> bool:
        return self.placement == "colocated"

    @property
    def n_gpus(self) -> int:
        return 0 if self.is_colocated else self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True, kw_only=True)
class OfflineExplorer(ExplorerConfig):
    """The explorer's rows come from a store, without replacement."""

    source: Literal["offline"] = "offline"
    store: str = limited(what="a folder that `s2l explore --out DIR` wrote")
    """Folder that ``s2l explore --out DIR`` wrote."""
    on_exhausted: Literal["error", "reuse", "learner"] = "error"
    """When a prompt has too few responses left. ``error``: the run ends. ``reuse``: stored responses are used
    again. ``learner``: the learner samples the missing rows."""


AnyExplorer = LiveExplorer | OfflineExplorer
"""Distinguished by ``source``; the first is the default."""
