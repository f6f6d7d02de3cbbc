"""Rules between the ``s2l:`` block and verl's own settings. A rule raises on the impossible and returns warnings."""

from __future__ import annotations

from importlib.util import find_spec

from omegaconf import DictConfig

from s2l_ext.config.modes import CPU_ENGINE, ENGINE_KEY, MODE_KEY, THRESHOLD_KEY, lag_limit, mode_of
from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.row_split import check_row_split
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.brought import checked_value
from s2l_ext.methods.registry import S2LConfig, methods_of
from s2l_ext.platforms import accelerator_present
from s2l_ext.training.placement_rules import check_placement
from s2l_ext.training.verl_command import check_command, check_steps
from s2l_ext.training.verl_rules import LOOP_KEY, check_verl

ACTOR = "actor_rollout_ref.actor"

TRACKERS = {
    "console": None,
    "file": None,
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "mlflow": "mlflow",
    "swanlab": "swanlab",
    "trackio": "trackio",
    "clearml": "clearml",
    "vemlp_wandb": "volcengine_ml_platform",
    "rl_insight": "rl_insight",
    "tracking": "wandb",
}
"""verl's trackers (``trainer.logger``) and the packages that they import; ``tracking`` is the old name of ``wandb``."""


def check_against_verl(s2l: S2LConfig, cfg: DictConfig) -> list[str]:
    """Apply every rule; returns warnings, one sentence each. Raises ConfigError: a combination that cannot run or would
    silently ignore a setting."""
    _check_trainer(s2l, cfg)
    check_mode(s2l, cfg)
    check_steps(cfg)
    check_placement(s2l)
    warnings = _kept_warnings(cfg)
    for method in methods_of(s2l, cfg):
        warnings += checked_value(method, "check", method.check(), list)
    warnings += [*check_command(cfg), *check_verl(s2l, cfg)]
    check_row_split(cfg)
    return warnings


def _check_trainer(s2l: S2LConfig, cfg: DictConfig) -> None:
    if setting(cfg, "trainer.use_v1") is False:
        raise ConfigError(
            "trainer.use_v1=False: this package extends verl's V1 trainer. Leave the key out, or run verl's legacy "
            "trainer with `python -m verl.trainer.main_ppo`."
        )
    named = setting(cfg, "trainer.logger") or []
    for name in [named] if isinstance(named, str) else named:
        _check_tracker(name)
    workers, reasons = whole_number(cfg, "data.dataloader_num_workers"), []
    if setting(cfg, "trainer.device") == "cpu":
        reasons.append(
            "trainer.device=cpu: each worker forks the driver, a process full of Ray threads, on a machine that has "
            "few cores to spare"
        )
    if s2l.curriculum is not None:
        reasons.append(
            "s2l.curriculum: workers fetch prompts ahead, drawn before the pass rates of the step in between are known"
        )
    if workers > 0 and reasons:
        raise ConfigError(
            f"data.dataloader_num_workers={workers} breaks {'; '.join(reasons)}. Set data.dataloader_num_workers=0."
        )


def _check_tracker(name: str) -> None:
    """verl makes its trackers after the models are loaded."""
    if name not in TRACKERS:
        raise ConfigError(
            f"trainer.logger: verl has no tracker {name!r}.{did_you_mean(name, TRACKERS)} Choose of "
            f"{', '.join(TRACKERS)}."
        )
    package = TRACKERS[name]
    if package and find_spec(package) is None:
        raise ConfigError(
            f"trainer.logger: {name} needs the package {package}, which is not installed here. `pip install "
            f"{package}`, or leave it out: metrics.jsonl has every metric."
        )


def _kept_warnings(cfg: DictConfig) -> list[str]:
    """verl deletes old weights once the new ones are written, and names the new checkpoint the latest after that."""
    if setting(cfg, "trainer.max_actor_ckpt_to_keep") != 1 or (setting(cfg, "trainer.save_freq") or 0) <= 0:
        return []
    return [
        "trainer.max_actor_ckpt_to_keep=1: verl deletes the old weights before the new checkpoint is complete, so a "
        "run that is killed in between cannot resume. Set 2."
    ]


def check_mode(s2l: S2LConfig, cfg: DictConfig) -> None:
    """Raise ConfigError on what the chosen mode of verl's trainer cannot do."""
    mode = mode_of(cfg)
    if s2l.any_method_on:
        key = f"trainer.v1.{mode}.parameter_sync_step"  # verl reads it in every mode
        updates = setting(cfg, key) or 1
        if updates > 1:
            raise ConfigError(
                f"{key}={updates}: verl would make that many updates per step, but controllers of s2l act once. Set "
                f"{key}=1."
            )
        if mode != "sync":
            _check_asynchronous(mode, s2l, cfg)
    if mode == "separate_async":
        _check_separate(cfg)


def _check_asynchronous(mode: str, s2l: S2LConfig, cfg: DictConfig) -> None:
    planned = [name for name in ("explorer", "guidance", "curriculum") if getattr(s2l, name) is not None]
    if planned and lag_limit(cfg) is None:
        raise ConfigError(
            f"{THRESHOLD_KEY}=null: nothing would bound how old the plan of a row is that s2l.{planned[0]} made when "
            f"its prompt was drawn. Set {THRESHOLD_KEY} to a whole number of steps (verl: 8)."
        )
    if setting(cfg, LOOP_KEY) == "s2l_seeded":
        raise ConfigError(
            f"{LOOP_KEY}=s2l_seeded repeats rollouts exactly, which {MODE_KEY}={mode} cannot: weights change at any "
            "time, and a session that continues after a step would repeat its random numbers. Set "
            f"{LOOP_KEY}=single_turn_agent, or {MODE_KEY}=sync."
        )


def _check_separate(cfg: DictConfig) -> None:
    """What verl asserts inside its task runner, with keys and fixes; and what is not built."""
    where = f"{MODE_KEY}=separate_async"
    for name in ("nnodes", "n_gpus_per_node"):
        key = f"actor_rollout_ref.rollout.{name}"
        if whole_number(cfg, key) < 1:
            raise ConfigError(f"{key}={setting(cfg, key)}: {where} samples on separate GPUs. Set it to at least 1.")
    _check_engine(where, cfg)
    updates = whole_number(cfg, "trainer.v1.separate_async.parameter_sync_step")
    batch, mini = whole_number(cfg, "data.train_batch_size"), whole_number(cfg, f"{ACTOR}.ppo_mini_batch_size")
    if batch != updates * mini:
        raise ConfigError(
            f"data.train_batch_size={batch} is not trainer.v1.separate_async.parameter_sync_step={updates} x "
            f"{ACTOR}.ppo_mini_batch_size={mini}, which {where} needs. Set ppo_mini_batch_size="
            f"{batch // updates}."
        )


def _check_engine(where: str, cfg: DictConfig) -> None:
    engine, on_cpu = setting(cfg, ENGINE_KEY), setting(cfg, "trainer.device") == "cpu"
    if on_cpu and engine != CPU_ENGINE:
        raise ConfigError(
            f"{ENGINE_KEY}={engine}: {where} sends weights between processes, and on a machine without an accelerator "
            f"only {CPU_ENGINE} can. Set {ENGINE_KEY}={CPU_ENGINE}."
        )
    if not on_cpu and engine in ("naive", CPU_ENGINE):
        raise ConfigError(
            f"{ENGINE_KEY}={engine}: {where} sends weights from GPU to GPU. Set {ENGINE_KEY} to nccl, nixl or another "
            "engine of verl's."
        )
    if engine == "nccl" and accelerator_present() and find_spec("cupy") is None:
        raise ConfigError(
            f"{ENGINE_KEY}=nccl needs the package cupy, which is not installed here: verl would fail after the models "
            "have loaded. `pip install cupy-cuda13x==14.0.1` (cupy-cuda12x for CUDA 12), or set another engine."
        )
