"""The estimate of memory as a table, and the refusal of what cannot fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig

from s2l_ext.errors import ResourceError
from s2l_ext.launch.accelerators import GIB, Accelerators
from s2l_ext.launch.memory import ACTOR, MODEL, ROLLOUT, Engine, Estimate, Phase
from s2l_ext.methods.registry import S2LConfig

TIGHT = 0.9
"""Share of a card above which a run that should fit is warned of."""

_SMALLER = "more accelerators or a smaller model"
_LORA = f"{MODEL}.lora_rank=32 with {ACTOR}.fsdp_config.model_dtype=bf16"
_STATES = f"{_LORA}, {ACTOR}.fsdp_config.offload_policy=true, {_SMALLER}"
_LENGTH = "lower data.max_response_length"
FIXES = {
    ("rollout", "weights"): f"{ACTOR}.fsdp_config.param_offload=true",
    ("rollout", "learner's engine"): f"lower {ROLLOUT}.gpu_memory_utilization",
    ("rollout", "Adam states"): f"{ACTOR}.fsdp_config.optimizer_offload=true",
    ("log-probs", "Adam states"): f"{ACTOR}.fsdp_config.optimizer_offload=true",
    (
        "log-probs",
        "logits",
    ): f"lower {ROLLOUT}.log_prob_micro_batch_size_per_gpu (or _max_token_len_per_gpu), {_LENGTH}",
    ("update", "logits"): f"lower {ACTOR}.ppo_micro_batch_size_per_gpu (or ppo_max_token_len_per_gpu), {_LENGTH}",
    (
        "update",
        "activations",
    ): f"{MODEL}.enable_gradient_checkpointing=true, lower {ACTOR}.ppo_micro_batch_size_per_gpu, {_LENGTH}",
}
"""What makes a part smaller, by phase and part."""
ANYWHERE = {
    "weights": _STATES,
    "gradients": _STATES,
    "Adam states": _STATES,
    "learner's engine": f"{ROLLOUT}.free_cache_engine=true",
    "explorer's engine": "lower s2l.explorer.rollout_overrides.gpu_memory_utilization",
    "teacher's output matrix": "a smaller teacher",
    "gathered layer": _SMALLER,
    "logits": _LENGTH,
}


@dataclass(frozen=True)
class MemoryReport:
    """``phases`` with full micro-batches; ``lines`` to print; ``warnings``, one sentence each."""

    phases: Sequence[Phase]
    lines: Sequence[str]
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """GiB by phase and part."""
        return {
            one.name: {part: round(value / GIB, 2) for part, value in one.parts.items()} | {"all": _gib(one.total)}
            for one in self.phases
        }


NOT_ESTIMATED = MemoryReport((), ())


def check_memory(cfg: DictConfig, s2l: S2LConfig, accelerators: Accelerators | None) -> MemoryReport:
    """Estimate the memory of one accelerator at each phase of a step. Without ``accelerators``, which are not known
    yet, engines are left out and nothing is refused. Raises ResourceError: a phase is larger than the card although
    each micro-batch has one row, or an engine's share does not hold its model and one sequence."""
    if cfg.trainer.device == "cpu" or cfg.actor_rollout_ref.actor.strategy not in ("fsdp", "fsdp2"):
        return NOT_ESTIMATED
    card = accelerators.size if accelerators else 0
    full = Estimate(cfg, s2l, card)
    phases = full.phases()
    if accelerators:
        for engine in full.engines():
            _require_room(engine, card)
        for phase in Estimate(cfg, s2l, card, one_row=True).phases():
            _require_fit(phase, card)
    size = f"{_gib(card)} GiB" if card else "size not known yet, engines left out"
    lines = [f"memory of one accelerator in GiB ({size}), micro-batches full:", *_table(phases)] if phases else []
    warnings = [text for phase in phases if card for text in _warnings(phase, card)]
    return MemoryReport(phases, [*lines, *(f"memory: {line}" for line in full.unknown())], warnings)


def _require_room(engine: Engine, card: float) -> None:
    if engine.needed <= engine.share * card:
        return
    raise ResourceError(
        f"{engine.key}.gpu_memory_utilization={engine.share:g} of {_gib(card)} GiB is {_gib(engine.share * card)} GiB, "
        f"but the {engine.name}'s engine needs {_gib(engine.needed)} GiB for its weights and one sequence of "
        f"max_model_len={engine.length}. Raise it, set {engine.key}.max_model_len to prompt plus response, or raise "
        "tensor_model_parallel_size."
    )


def _require_fit(phase: Phase, card: float) -> None:
    if phase.total <= card:
        return
    largest = _largest(phase)
    fixes = dict.fromkeys(FIXES.get((phase.name, part), ANYWHERE.get(part, _SMALLER)) for part in largest)
    raise ResourceError(
        f"memory: {phase.name} needs at least {_gib(phase.total)} GiB of an accelerator that has {_gib(card)}, with "
        f"one row in a micro-batch. Largest: {_named(phase, largest)}. To make them smaller: {'; '.join(fixes)}."
    )


def _warnings(phase: Phase, card: float) -> list[str]:
    if phase.total <= TIGHT * card:
        return []
    if phase.total <= card:
        words = f"more than {TIGHT:.0%}" + " of an accelerator, and CUDA's own memory comes on top"
    else:
        words = "more than an accelerator has, if all rows of a micro-batch are as long as may be"
    largest = _largest(phase)
    return [f"memory: {phase.name} takes {_gib(phase.total)} of {_gib(card)} GiB, {words}: {_named(phase, largest)}."]


def _largest(phase: Phase) -> list[str]:
    return sorted(phase.parts, key=lambda part: -phase.parts[part])[:3]


def _named(phase: Phase, parts: Sequence[str]) -> str:
    return ", ".join(f"{part} {_gib(phase.parts[part])}" for part in parts)


def _table(phases: Sequence[Phase]) -> list[str]:
    parts = list(dict.fromkeys(part for phase in phases for part in phase.parts))
    rows = [("", [phase.name for phase in phases])]
    rows += [(part, [_cell(phase.parts.get(part)) for phase in phases]) for part in parts]
    rows += [("all", [_cell(phase.total) for phase in phases])]
    return [f"  {name:<24}" + "".join(f"{cell:>12}" for cell in cells) for name, cells in rows]


def _cell(value: float | None) -> str:
    return f"{value / GIB:.1f}" if value else "-"


def _gib(value: float) -> float:
    return round(value / GIB, 1)
