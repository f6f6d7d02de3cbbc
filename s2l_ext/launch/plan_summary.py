"""What a run will do, in a form a person reads (:func:`render`) and a program reads (:func:`build_plan`)."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.modes import batches_ahead, lag_limit, mode_of
from s2l_ext.config.verl_settings import plain_setting, total_steps
from s2l_ext.methods.brought import checked_value
from s2l_ext.methods.registry import METHODS, S2LConfig, method_class, methods_of
from s2l_ext.utils.digests import digest_of


def fingerprint(cfg: DictConfig) -> str:
    """First 16 hex digits of the SHA-256 of the resolved configuration, independent of key order."""
    return digest_of(OmegaConf.to_container(cfg, resolve=True))[:16]


def build_plan(cfg: DictConfig, s2l: S2LConfig, recipe: str, platform: str, steps: int | None = None) -> dict[str, Any]:
    """Plain values only. A method that is off is None. ``steps``: of the run; None takes what the settings alone
    say."""
    rollout, trainer, actor = cfg.actor_rollout_ref.rollout, cfg.trainer, cfg.actor_rollout_ref.actor
    steps = total_steps(cfg) if steps is None else steps
    separate = mode_of(cfg) == "separate_async"
    plan = {
        "recipe": recipe,
        "platform": platform,
        "learner": {
            "model": cfg.actor_rollout_ref.model.path,
            "gpus": trainer.nnodes * trainer.n_gpus_per_node,
            "temperature": rollout.temperature,
            "top_p": rollout.top_p,
            "lr": actor.optim.lr,
        },
        "mode": {"name": mode_of(cfg), "batches_ahead": batches_ahead(cfg), "lag_limit": lag_limit(cfg)},
        "rollout_gpus": rollout.nnodes * rollout.n_gpus_per_node if separate else 0,
        "steps": steps,
        "prompts_per_step": cfg.data.train_batch_size,
        "group_size": rollout.n,
        "advantage": cfg.algorithm.adv_estimator,
        "kl_in_loss": f"{actor.kl_loss_coef:g} in the loss" if actor.use_kl_loss else None,
        **dict.fromkeys(METHODS),
        "train_files": plain_setting(cfg, "data.train_files"),
        "on": list(s2l.blocks),
        "off": [name for name, value in s2l.to_dict().items() if value is None],
        "output": trainer.default_local_dir,
        "save_freq": trainer.save_freq,
    }
    for method in methods_of(s2l, cfg):
        plan |= checked_value(method, "plan", method.plan(steps), dict)
    return plan


def render(plan: dict[str, Any]) -> str:
    """The plan as aligned lines."""
    learner, steps = plan["learner"], "as many as the data gives" if plan["steps"] is None else plan["steps"]
    lines = [
        ("recipe", f"{plan['recipe']} on {plan['platform']}"),
        ("learner", f"{learner['model']}, {learner['gpus']} GPU(s), lr {learner['lr']:g}"),
        ("mode", _mode_line(plan["mode"], plan["rollout_gpus"])),
        ("steps", f"{steps}, {plan['prompts_per_step']} prompts x {plan['group_size']} sessions each"),
        ("advantage", f"{plan['advantage']}, KL {plan['kl_in_loss'] or 'off'}"),
        *(line for block in plan["on"] for line in method_class(block).plan_lines(plan)),
        ("data", str(plan["train_files"])),
        ("off", ", ".join(plan["off"]) or "nothing"),
        ("output", plan["output"]),
        ("saves", _saves_line(plan["save_freq"])),
    ]
    return "\n".join(f"  {name:<10} {text}" for name, text in lines)


def _saves_line(save_freq: int | None) -> str:
    if (save_freq or 0) > 0:
        return f"a checkpoint every {save_freq} steps and at the end"
    return f"nothing: trainer.save_freq={save_freq} leaves no model, and a run that stops begins anew"


def _mode_line(mode: dict[str, Any], rollout_gpus: int) -> str:
    if mode["name"] == "sync":
        return "sync, every step trains on the prompts it draws"
    limit = "without limit" if mode["lag_limit"] is None else f"at most {mode['lag_limit']} steps old"
    gpus = f", {rollout_gpus} GPU(s) for its rollouts" if rollout_gpus else ""
    return f"{mode['name']}{gpus}, {mode['batches_ahead']:g} batch(es) drawn ahead, a row's plan {limit}"
