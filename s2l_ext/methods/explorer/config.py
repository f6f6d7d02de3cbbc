"""The block ``s2l.explorer``: live servers, or rollouts sampled before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from s2l_ext.config.limits import limited


@dataclass(frozen=True, kw_only=True)
class ExplorerConfig:
    """S2L-PO: a smaller sibling samples the first sessions of every group, up to step ``mix_steps`` (T_mix).

    ``schedule: hard_switch`` lets it sample every session up to step ``mix_steps`` and none after it, ``constant``
    every session to the end, as the teacher does in sparse-to-dense's warm-up.
    """

    source: str
    schedule: Literal["linear", "hard_switch", "constant"] = "linear"
    mix_steps: int = limited(8, at_least=1)
    baseline: Literal["union", "per_source"] = "union"
    correction: Literal["none", "truncated_is"] = "none"
    is_cap: float = limited(2.0, above=0)

    @property
    def n_gpus(self) -> int:
        """GPUs of its own; stored rollouts and an explorer on the learner's need none."""
        return 0


@dataclass(frozen=True, kw_only=True)
class LiveExplorer(ExplorerConfig):
    """``model_path`` is a Hugging Face folder or hub id. ``placement: dedicated`` gives the explorer GPUs of its own
    (``nnodes * n_gpus_per_node``); ``colocated`` has it sample on the learner's and sleep during updates. Sampling
    values are those of the authors' scripts.

    ``rollout_overrides`` holds keys of ``actor_rollout_ref.rollout`` for the explorer's engine only.
    ``on_failure``, when a server dies or hangs: end the run, let its sessions wait for the restart, or let the
    learner sample them. At most ``max_restarts`` in all, the first after ``restart_backoff_s`` seconds, then twice as
    long each time; one try, or a colocated server's turn, may take ``start_timeout_s``. A server has failed when it
    does not answer within ``health_timeout_s`` a question asked every ``health_interval_s``, a request after
    ``request_timeout_s``.
    """

    source: Literal["live"] = "live"
    model_path: str
    placement: Literal["dedicated", "colocated"] = "dedicated"
    nnodes: int = limited(1, at_least=1)
    n_gpus_per_node: int = limited(1, at_least=1)
    tensor_model_parallel_size: int = limited(1, at_least=1)
    temperature: float = limited(0.7, at_least=0)
    top_p: float = limited(0.95, above=0, at_most=1)
    top_k: int = limited(-1, at_least=-1)
    rollout_overrides: dict[str, Any] = field(default_factory=dict)
    on_failure: Literal["fail", "wait", "learner"] = "fail"
    max_restarts: int = limited(3, at_least=0)
    restart_backoff_s: float = limited(10.0, at_least=0)
    start_timeout_s: float = limited(900.0, above=0)
    health_interval_s: float = limited(15.0, above=0)
    health_timeout_s: float = limited(60.0, above=0)
    request_timeout_s: float = limited(1800.0, above=0)

    @property
    def is_colocated(self) -> bool:
        return self.placement == "colocated"

    @property
    def n_gpus(self) -> int:
        return 0 if self.is_colocated else self.nnodes * self.n_gpus_per_node


@dataclass(frozen=True, kw_only=True)
class OfflineExplorer(ExplorerConfig):
    """Rows are taken, without replacement, from a ``store`` that ``s2l explore`` wrote; ``on_exhausted`` says what
    happens to a group for which too few are left."""

    source: Literal["offline"] = "offline"
    store: str = limited(what="a folder that `s2l explore --out DIR` wrote")
    on_exhausted: Literal["error", "reuse", "learner"] = "error"


AnyExplorer = LiveExplorer | OfflineExplorer
"""Told apart by ``source``; the first is the default."""
