"""What a run will do, in a form a person reads (:func:`render`) and a program reads (:func:`build_plan`)."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.modes import batches_ahead, lag_limit, mode_of
from s2l_ext.config.verl_settings import total_steps
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.curriculum.rules import CURRICULUM_KEYS
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.explorer.schedule import build_schedule
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.guidance.length import guided_sessions
from s2l_ext.methods.guidance.rules import LENGTH_KEYS
from s2l_ext.methods.kl.config import KLConfig
from s2l_ext.methods.kl.rules import build_kl
from s2l_ext.methods.registry import S2LConfig

STEPS_SHOWN = 32


def fingerprint(cfg: DictConfig) -> str:
    """First 16 hex digits of the SHA-256 of the resolved configuration, independent of key order."""
    plain = OmegaConf.to_container(cfg, resolve=True)
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


def build_plan(cfg: DictConfig, s2l: S2LConfig, recipe: str, platform: str, steps: int | None = None) -> dict[str, Any]:
    """Plain values only. ``explorer`` is None when the feature is off.

    Args:
        steps: of the run; None takes what the settings alone say.
    """
    rollout, trainer = cfg.actor_rollout_ref.rollout, cfg.trainer
    steps = total_steps(cfg) if steps is None else steps
    return {
        "recipe": recipe,
        "platform": platform,
        "learner": {
            "model": cfg.actor_rollout_ref.model.path,
            "gpus": trainer.nnodes * trainer.n_gpus_per_node,
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "lr": cfg.actor_rollout_ref.actor.optim.lr,
        },
        "mode": {"name": mode_of(cfg), "batches_ahead": batches_ahead(cfg), "lag_limit": lag_limit(cfg)},
        "rollout_gpus": rollout.nnodes * rollout.n_gpus_per_node if mode_of(cfg) == "separate_async" else 0,
        "explorer": _explorer_plan(s2l.explorer, rollout.n, steps) if s2l.explorer else None,
        "steps": steps,
        "prompts_per_step": cfg.data.train_batch_size,
        "group_size": rollout.n,
        "advantage": cfg.algorithm.adv_estimator,
        "kl_in_loss": _kl_plan(s2l.kl, cfg),
        "curriculum": _curriculum_plan(s2l.curriculum) if s2l.curriculum else None,
        "guidance": _guidance_plan(s2l.guidance, rollout.n) if s2l.guidance else None,
        "distill": _distill_plan(s2l.distill) if s2l.distill else None,
        "train_files": _plain(cfg.data.train_files),
        "off": [name for name, value in s2l.to_dict().items() if value is None],
        "output": trainer.default_local_dir,
    }


def _plain(value: Any) -> Any:
    return OmegaConf.to_object(value) if OmegaConf.is_config(value) else value


def _kl_plan(kl: KLConfig | None, cfg: DictConfig) -> str | None:
    """In words; None without a KL term in the loss."""
    actor = cfg.actor_rollout_ref.actor
    if kl is None:
        return f"{actor.kl_loss_coef:g} in the loss" if actor.use_kl_loss else None
    if kl.type == "constant":
        return f"{kl.beta:g} in the loss"
    if kl.type == "adaptive_target":
        return f"in the loss, {kl.beta:g} at first, then held at {kl.target:g} nats per token"
    controller = build_kl(kl, cfg)
    low, high = controller.coefficient(0.0), controller.coefficient(1.0)
    return f"in the loss, {kl.beta:g} x {kl.rho}(accuracy): {low:.4g} to {high:.4g}"


def _curriculum_plan(curriculum: CurriculumConfig) -> dict[str, Any]:
    used = CURRICULUM_KEYS.get(curriculum.type, {"options"}) | {"ema", "rows"}
    return {"type": curriculum.type, **{name: getattr(curriculum, name) for name in sorted(used)}}


def _explorer_plan(explorer: ExplorerConfig, group_size: int, steps: int | None) -> dict[str, Any]:
    schedule = build_schedule(explorer.schedule, explorer.mix_steps, group_size)
    slots = schedule.table(steps or explorer.mix_steps)
    return {
        "source": explorer.source,
        **_sampled_by(explorer),
        "gpus": explorer.n_gpus,
        "baseline": explorer.baseline,
        "correction": explorer.correction,
        "schedule": explorer.schedule,
        "mix_steps": explorer.mix_steps,
        "slots": slots,
        "share_of_rollouts": sum(slots) / (group_size * steps) if steps else None,
    }


def _sampled_by(explorer: ExplorerConfig) -> dict[str, Any]:
    if not explorer.is_live:
        return {"store": explorer.store, "too_few": explorer.too_few}
    names = ("placement", "temperature", "top_p")
    return {"model": explorer.model_path, **{name: getattr(explorer, name) for name in names}}


def render(plan: dict[str, Any]) -> str:
    """The plan as aligned lines."""
    learner, explorer = plan["learner"], plan["explorer"]
    steps = plan["steps"] if plan["steps"] is not None else "as many as the data gives"
    kl, curriculum = plan["kl_in_loss"] or "off", plan["curriculum"]
    lines = [
        ("recipe", f"{plan['recipe']} on {plan['platform']}"),
        ("learner", f"{learner['model']}, {learner['gpus']} GPU(s), lr {learner['lr']:g}"),
        ("mode", _mode_line(plan["mode"], plan["rollout_gpus"])),
        ("explorer", _explorer_line(explorer) if explorer else "off"),
        ("steps", f"{steps}, {plan['prompts_per_step']} prompts x {plan['group_size']} sessions each"),
        ("advantage", f"{plan['advantage']}, KL {kl}"),
        *(_slot_lines(explorer, plan["group_size"]) if explorer else []),
        *([("prompts", _curriculum_line(curriculum))] if curriculum else []),
        *([("guidance", _guidance_line(plan["guidance"]))] if plan["guidance"] else []),
        *([("loss", _distill_line(plan["distill"]))] if plan["distill"] else []),
        ("data", str(plan["train_files"])),
        ("off", ", ".join(plan["off"]) or "nothing"),
        ("output", plan["output"]),
    ]
    return "\n".join(f"  {name:<10} {text}" for name, text in lines)


def _mode_line(mode: dict[str, Any], rollout_gpus: int) -> str:
    if mode["name"] == "sync":
        return "sync, every step trains on the prompts it draws"
    limit = "without limit" if mode["lag_limit"] is None else f"at most {mode['lag_limit']} steps old"
    gpus = f", {rollout_gpus} GPU(s) for its rollouts" if rollout_gpus else ""
    return f"{mode['name']}{gpus}, {mode['batches_ahead']:g} batch(es) drawn ahead, a row's plan {limit}"


def _guidance_plan(guidance: GuidanceConfig, group_size: int) -> dict[str, Any]:
    length = guidance.length
    used = {
        name: getattr(length, name) for name in sorted(LENGTH_KEYS[length.type]) if getattr(length, name) is not None
    }
    return {
        "sessions": guided_sessions(guidance.alpha, group_size),
        "group_size": group_size,
        "length": {"type": length.type, **used},
        "loss_on_guidance": guidance.loss_on_guidance,
    }


def _distill_plan(distill: DistillConfig) -> dict[str, Any]:
    return {"loss": distill.loss, "teacher": distill.teacher_path, "scorer": distill.scorer} | (
        {"correct_only": True} if distill.correct_only else {}
    )


def _distill_line(distill: dict[str, Any]) -> str:
    rows = ", on correct rows only" if distill.get("correct_only") else ""
    teacher = f" to {distill['teacher']} (scorer {distill['scorer']})" if distill["teacher"] else ""
    return f"{distill['loss']}{teacher}{rows}, in place of the policy gradient"


def _guidance_line(guidance: dict[str, Any]) -> str:
    length = ", ".join(f"{name} {value}" for name, value in guidance["length"].items() if name != "type")
    loss = "in the loss" if guidance["loss_on_guidance"] else "masked"
    sessions = f"{guidance['sessions']} of {guidance['group_size']} sessions"
    return f"{sessions}, {guidance['length']['type']} length ({length}), guidance tokens {loss}"


def _curriculum_line(curriculum: dict[str, Any]) -> str:
    settings = [f"{name} {value}" for name, value in curriculum.items() if name != "type" and value is not None]
    return ", ".join([curriculum["type"], *settings])


def _explorer_line(explorer: dict[str, Any]) -> str:
    how = f"baseline {explorer['baseline']}, correction {explorer['correction']}"
    if explorer["source"] == "offline":
        return f"rollouts stored in {explorer['store']} (too few: {explorer['too_few']}), no GPU, {how}"
    where = "the learner's GPUs, in turns" if explorer["placement"] == "colocated" else f"{explorer['gpus']} GPU(s)"
    return (
        f"{explorer['model']}, {where} {explorer['placement']}, temperature "
        f"{explorer['temperature']:g}, top-p {explorer['top_p']:g}, {how}"
    )


def _slot_lines(explorer: dict[str, Any], group_size: int) -> list[tuple[str, str]]:
    slots = explorer["slots"]
    more = f" ... ({len(slots)} steps)" if len(slots) > STEPS_SHOWN else ""
    table = " ".join(str(count) for count in slots[:STEPS_SHOWN])
    share = explorer["share_of_rollouts"]
    total = "" if share is None else f"; {share:.1%} of all rollouts"
    return [("slots", f"{table}{more}  (explorer sessions of {group_size}, step by step{total})")]
