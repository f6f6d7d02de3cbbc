"""Fields of the ``s2l:`` block. Types are checked from the annotations, ranges from :func:`limited`.

A new feature adds one dataclass here and one field to :class:`S2LConfig`; the parser needs no change.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any, Literal

from s2l_ext.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Allowed range of a number; None leaves a side open."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def describe(self) -> str:
        sides = ((">=", self.at_least), (">", self.above), ("<=", self.at_most), ("<", self.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in sides if bound is not None)

    def allow(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def limited(
    default: Any,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
) -> Any:
    """A dataclass field with a range."""
    return field(default=default, metadata={"limits": Limits(at_least, above, at_most, below)})


@dataclass(frozen=True)
class ExplorerConfig:
    """S2L-PO: a smaller sibling samples the first sessions of every group.

    ``model_path`` is a Hugging Face folder or hub id. ``placement: dedicated`` gives the explorer GPUs of its own
    (``nnodes * n_gpus_per_node``); ``colocated`` has it sample on the learner's and sleep during updates. ``mix_steps``
    is T_mix. Sampling values are those of the authors' scripts.
    ``schedule: hard_switch`` lets it sample every session up to step ``mix_steps`` and none after it, ``constant``
    every session to the end, as the teacher does in sparse-to-dense's warm-up.
    ``rollout_overrides`` holds keys of ``actor_rollout_ref.rollout`` for the explorer's engine only.
    ``source: offline`` takes its rows, without replacement, from a ``store`` that ``s2l explore`` wrote;
    ``too_few`` says what happens to a group for which too few are left.
    ``on_failure``, when a live server dies or hangs: end the run, let its sessions wait for the restart, or let the
    learner sample them. At most ``max_restarts`` in all, the first after ``restart_backoff_s`` seconds, then twice as
    long each time; one try, or a colocated server's turn, may take ``start_timeout_s``. A server has failed when it
    does not answer within ``health_timeout_s`` a question asked every ``health_interval_s``, a request after
    ``request_timeout_s``.
    """

    model_path: str | None = None
    source: Literal["live", "offline"] = "live"
    store: str | None = None
    too_few: Literal["error", "reuse", "learner"] = "error"
    placement: Literal["dedicated", "colocated"] = "dedicated"
    nnodes: int = limited(1, at_least=1)
    n_gpus_per_node: int = limited(1, at_least=1)
    tensor_model_parallel_size: int = limited(1, at_least=1)
    schedule: Literal["linear", "hard_switch", "constant"] = "linear"
    mix_steps: int = limited(8, at_least=1)
    temperature: float = limited(0.7, at_least=0)
    top_p: float = limited(0.95, above=0, at_most=1)
    top_k: int = limited(-1, at_least=-1)
    baseline: Literal["union", "per_source"] = "union"
    correction: Literal["none", "truncated_is"] = "none"
    is_cap: float = limited(2.0, above=0)
    rollout_overrides: dict[str, Any] = field(default_factory=dict)
    on_failure: Literal["fail", "wait", "learner"] = "fail"
    max_restarts: int = limited(3, at_least=0)
    restart_backoff_s: float = limited(10.0, at_least=0)
    start_timeout_s: float = limited(900.0, above=0)
    health_interval_s: float = limited(15.0, above=0)
    health_timeout_s: float = limited(60.0, above=0)
    request_timeout_s: float = limited(1800.0, above=0)

    def __post_init__(self) -> None:
        if self.is_live and self.model_path is None:
            raise ConfigError("s2l.explorer.model_path is missing: it has no default. Set s2l.explorer.model_path=...")

    @property
    def is_live(self) -> bool:
        return self.source == "live"

    @property
    def is_colocated(self) -> bool:
        return self.is_live and self.placement == "colocated"

    @property
    def model(self) -> str:
        """Path of a live explorer's model."""
        assert self.model_path is not None
        return self.model_path

    @property
    def n_gpus(self) -> int:
        """GPUs of its own; stored rollouts and an explorer on the learner's need none."""
        return self.nnodes * self.n_gpus_per_node if self.is_live and not self.is_colocated else 0


@dataclass(frozen=True)
class RolloutOptions:
    """``poll_interval_s``: seconds between looks for finished groups; None keeps verl's own 2 s. ``log_groups``: groups
    of every step that are written to ``samples.jsonl``, to be read. ``session_timeout_s``: a training session that the
    learner samples fails after so many seconds, its reward included; None waits for ever, as verl does."""

    poll_interval_s: float | None = limited(None, above=0)
    log_groups: int = limited(1, at_least=0)
    session_timeout_s: float | None = limited(None, above=0)


RHO_SHAPES = ("tanh", "linear", "power")
CURRICULA = ("gaussian", "uniform", "easy_to_hard", "file_order")


@dataclass(frozen=True)
class KLConfig:
    """EXPO's coefficient of the KL term in the loss; it takes the place of ``actor.kl_loss_coef``.

    ``beta`` is the coefficient before ``rho``, or the start value of ``adaptive_target``. ``rho`` is one of
    :data:`RHO_SHAPES` or ``pkg.module:function``; ``rho_low`` and ``rho_high`` are its values at accuracy 0 and 1
    (linear, power). ``target`` is in nats per token, ``horizon`` in rollout rows, as in verl's ``algorithm.kl_ctrl``.
    """

    type: Literal["constant", "accuracy", "adaptive_target"] = "accuracy"
    beta: float = limited(0.02, at_least=0)
    rho: str = "tanh"
    rho_low: float = limited(0.5, above=0)
    rho_high: float = limited(1.0, above=0)
    rho_exponent: float = limited(2.0, above=0)
    target: float | None = limited(None, above=0)
    horizon: int = limited(10_000, at_least=1)
    integral: float = limited(0.0, at_least=0)


@dataclass(frozen=True)
class CurriculumConfig:
    """Which prompts a step trains on.

    ``type`` is one of :data:`CURRICULA`, an entry point of the group ``s2l.curricula`` or ``pkg.module:Class``, which
    gets ``options``. ``rows``: whose rows estimate pass rates. ``tier_order`` lists tiers, easiest first; None sorts
    numbers. ``warm_start`` is a file of start values (columns ``prompt_id``, ``pass_rate``).
    """

    type: str = "gaussian"
    center: float = limited(0.5, at_least=0, at_most=1)
    sigma: float = limited(0.35, above=0)
    ema: float = limited(0.9, at_least=0, below=1)
    rows: Literal["learner", "all"] = "learner"
    tier_column: str = "tier"
    tier_order: list[Any] | None = None
    warm_start: str | None = None
    on_mismatch: Literal["error", "reset"] = "error"
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class GuidanceLengthConfig:
    """Tokens of a trace that guided rollouts start from, at most ``max_length`` with every type.

    ``min_length``, ``window`` and ``signal`` belong to ``adaptive`` and ``additive``. ``signal`` says whose accuracy
    moves the length: ``all`` of the learner's rows, its ``unguided`` ones, or those of ``every_source``.
    """

    type: Literal["adaptive", "additive", "constant", "linear", "concave", "stepwise"] = "adaptive"
    initial: int = limited(3072, at_least=0)
    max_length: int = limited(3072, at_least=1)
    min_length: int = limited(1, at_least=0)
    window: int = limited(2, at_least=1)
    cadence: Literal["every_step", "every_third"] = "every_step"
    max_change: float | None = limited(None, above=1)
    signal: Literal["all", "unguided", "every_source"] = "all"
    delta: int = limited(256, at_least=1)
    power: float = limited(2.0, above=1)
    gamma: float = limited(0.5, above=0, below=1)
    every: int = limited(100, at_least=1)


@dataclass(frozen=True)
class GuidanceConfig:
    """G2RPO-A: the first ``round(alpha * G)`` sessions of a group continue a reasoning trace.

    ``trace`` is the dotted name of the traces' column; ``teacher_rollouts`` a file of another model's graded answers
    (fields ``prompt_id``, ``response``, ``acc``), whose right ones take the column's place. ``min_continuation``:
    response tokens that the model always writes itself. ``missing_trace``: what happens to rows without one.
    """

    alpha: float = limited(0.25, at_least=0, at_most=1)
    trace: str = "extra_info.trace"
    teacher_rollouts: str | None = None
    length: GuidanceLengthConfig = field(default_factory=GuidanceLengthConfig)
    loss_on_guidance: bool = False
    min_continuation: int = limited(512, at_least=1)
    stop_before_answer: bool = True
    missing_trace: Literal["error", "skip_guidance"] = "error"


@dataclass(frozen=True)
class DistillConfig:
    """Sparse-to-dense: a divergence to a frozen teacher takes the place of the policy gradient.

    ``loss`` is read on the rows that the step sampled: ``forward_kl`` on the teacher's (stage 2a, with
    ``s2l.explorer``), ``reverse_kl`` on the student's (2b), ``sampled_k1`` its policy gradient on sampled tokens,
    ``sft`` their hard labels (needs no teacher). ``jsd_beta`` weighs the teacher in ``jsd``. ``scorer: fsdp`` puts the
    whole teacher beside the actor, ``server`` asks verl's teacher servers for its ``topk`` tokens. ``chunk_size``:
    tokens whose logits exist at a time. ``temperature`` divides both models' logits.
    """

    teacher_path: str | None = None
    loss: Literal["reverse_kl", "forward_kl", "jsd", "sampled_k1", "sft"] = "reverse_kl"
    scorer: Literal["fsdp", "server"] = "fsdp"
    temperature: float = limited(1.0, above=0)
    jsd_beta: float = limited(0.5, above=0, below=1)
    correct_only: bool = False
    chunk_size: int = limited(256, at_least=1)
    topk: int = limited(128, at_least=1)
    nnodes: int = limited(1, at_least=1)
    n_gpus_per_node: int = limited(1, at_least=1)
    tensor_model_parallel_size: int = limited(1, at_least=1)

    @property
    def in_actor(self) -> bool:
        """The loss is computed by this package's engine, not by verl's distillation."""
        return self.scorer == "fsdp"


@dataclass(frozen=True)
class PlacementConfig:
    """Label selectors of the nodes that may hold a role, as in ``ray start --labels pool=explorer``; values are Ray's
    ``value``, ``!value``, ``in(a, b)``, ``!in(a, b)``. None lets Ray choose."""

    learner: dict[str, Any] | None = None
    explorer: dict[str, Any] | None = None


@dataclass(frozen=True)
class S2LConfig:
    """The whole block. A feature that is None is off."""

    explorer: ExplorerConfig | None = None
    kl: KLConfig | None = None
    curriculum: CurriculumConfig | None = None
    guidance: GuidanceConfig | None = None
    distill: DistillConfig | None = None
    rollout: RolloutOptions = field(default_factory=RolloutOptions)
    placement: PlacementConfig = field(default_factory=PlacementConfig)

    @property
    def anything_on(self) -> bool:
        """Any feature that changes training; ``rollout`` and ``placement`` change none."""
        features = (self.explorer, self.kl, self.curriculum, self.guidance, self.distill)
        return any(feature is not None for feature in features)

    @property
    def own_sessions(self) -> bool:
        """Sessions of a group differ in who samples them or what they start from."""
        return self.explorer is not None or self.guidance is not None

    @property
    def own_manager(self) -> bool:
        """Sessions are run by this package's agent-loop workers."""
        return self.own_sessions or self.rollout.session_timeout_s is not None

    def to_dict(self) -> dict[str, Any]:
        """Plain containers, ready for YAML or JSON; :func:`s2l_ext.config.parse_s2l` reads them back."""
        return dataclasses.asdict(self)
