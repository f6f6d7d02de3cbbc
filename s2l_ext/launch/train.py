"""What ``s2l train`` and ``s2l check`` do: compose a recipe, validate it, check the machine, plan, run verl."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.model_files import parameter_count
from s2l_ext.config.modes import TRAINERS, mode_of
from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.launch.accelerators import Accelerators, accelerators_here, require_attention
from s2l_ext.launch.cluster import CheckedRunner, cluster_address, joining
from s2l_ext.launch.compose import compose_config, require_values
from s2l_ext.launch.memory_check import NOT_ESTIMATED, MemoryReport, check_memory
from s2l_ext.launch.plan_summary import build_plan
from s2l_ext.launch.toy_on_gpu import compose_for_this_machine
from s2l_ext.launch.verl_names import check_names
from s2l_ext.methods.registry import S2LConfig, parse_s2l
from s2l_ext.platforms import activate_for, fork_workers
from s2l_ext.platforms.vllm_cpu import install_alias
from s2l_ext.training.before_run import check_before_run
from s2l_ext.training.inputs import steps_of_run
from s2l_ext.training.needed import needed_now
from s2l_ext.training.preflight import check_own_pool, check_pool, gpus_needed, keep_own_ray_here
from s2l_ext.training.verl_rules import MANAGER_KEY
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.run_lock import held
from s2l_ext.utils.secrets import masked, refuse_secrets

CONFIG_FILE = "s2l_config.yaml"
PLAN_FILE = "plan.json"


@dataclass(frozen=True)
class Prepared:
    """A run that was checked."""

    cfg: DictConfig
    s2l: S2LConfig
    plan: dict[str, Any]
    warnings: list[str]
    memory: MemoryReport = NOT_ESTIMATED


def prepare(
    config_name: str,
    overrides: Sequence[str],
    config_dirs: Sequence[Path] = (),
    accelerators: Accelerators | None = None,
) -> Prepared:
    """Everything before the run: compose, parse, choose the platform, check configuration and machine, ask verl. Sets
    ``trainer.v1.trainer_mode`` to this package's trainer of that mode, with every feature off too. ``accelerators``:
    another machine's, for which the run is checked. Raises S2LError: names the setting, the reason and the fix."""
    warnings: list[str] = []
    if accelerators:
        cfg = compose_config(config_name, overrides, config_dirs)
    else:
        cfg, warnings = compose_for_this_machine(
            lambda given: compose_config(config_name, given, config_dirs), overrides
        )
    require_values(cfg)
    refuse_secrets(_plain(cfg))
    s2l = parse_s2l(cfg.s2l)
    if cluster_address(cfg) is None:  # refuses sizes that a cluster which exists cannot take
        keep_own_ray_here()
    else:  # whose processes run in the folder where it was started
        cfg.trainer.default_local_dir = str(Path(cfg.trainer.default_local_dir).absolute())
    platform = _other_platform(cfg, accelerators) if accelerators else activate_for(cfg)
    memory = _look_at_accelerators(cfg, s2l, accelerators)
    found, _ = check_before_run(cfg, s2l)
    warnings += [*found, *memory.warnings]
    cfg.trainer.v1.trainer_mode = TRAINERS[mode_of(cfg)]
    if cfg.trainer.get("validation_data_dir") is None:
        cfg.trainer.validation_data_dir = str(Path(cfg.trainer.default_local_dir) / "validation")
    _ask_verl(cfg)
    _ask_for_manager(cfg)
    check_names(cfg)
    from s2l_ext.training.reward_probe import check_reward  # imports verl

    warnings += check_reward(cfg, s2l)
    steps = steps_of_run(cfg)
    plan = build_plan(cfg, s2l, config_name, platform, steps.number if steps else None)
    return Prepared(cfg, s2l, plan, warnings, memory)


def _other_platform(cfg: DictConfig, other: Accelerators) -> str:
    if cfg.trainer.device == "cpu":
        raise ConfigError(
            f"--for {other} with trainer.device=cpu: this recipe takes no accelerator. Leave --for out, or choose a "
            "recipe for GPUs (recipes/one_gpu/README.md)."
        )
    install_alias()  # verl asks for vLLM's version where LoRA is on; a login node may have the build for the CPU
    return str(cfg.trainer.device)


def _look_at_accelerators(cfg: DictConfig, s2l: S2LConfig, other: Accelerators | None) -> MemoryReport:
    """Raises ResourceError for fewer, or smaller ones, than the run needs."""
    needed = needed_now(cfg, s2l)
    if other:
        check_pool(cfg, needed, other.count)
    else:
        check_own_pool(cfg, s2l)
    here = None if other else accelerators_here(cfg)
    if here:
        require_attention(cfg)
    return check_memory(cfg, needed, other or here)


def _plain(cfg: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(cfg, resolve=True)
    return {str(name): value for name, value in plain.items()} if isinstance(plain, dict) else {}


def _masked_yaml(cfg: DictConfig) -> str:
    """What is written down of a configuration; keys of a form that :func:`refuse_secrets` lets pass are hidden."""
    return OmegaConf.to_yaml(OmegaConf.create(masked(_plain(cfg))))


def _ask_verl(cfg: DictConfig) -> None:
    """What verl's own main does between composing and running."""
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config
    from verl.utils.device import auto_set_device

    try:
        auto_set_device(cfg)
        validate_config(cfg, use_reference_policy=need_reference_policy(cfg), use_critic=need_critic(cfg))
    except (AssertionError, ValueError, TypeError, OmegaConfBaseException, InstantiationException) as error:
        raise ConfigError(f"verl refuses the configuration: {' '.join(str(error).split())}") from error


def _ask_for_manager(cfg: DictConfig) -> None:
    """Load a user's agent-loop manager, which verl does after the models."""
    from verl.utils.import_utils import load_class_from_fqn

    name = setting(cfg, MANAGER_KEY)
    if name is None:
        return
    try:
        load_class_from_fqn(name, "AgentLoopManager")
    except Exception as error:
        raise ConfigError(
            f"{MANAGER_KEY}={name}: this class cannot be loaded ({type(error).__name__}: {error}). Write "
            "package.module.Class, and put the package's folder on PYTHONPATH."
        ) from error


def parameters(prepared: Prepared) -> dict[str, int | None]:
    """How many each model has; None where its folder does not say or no such model runs."""
    s2l = prepared.s2l
    paths = {
        "learner": prepared.cfg.actor_rollout_ref.model.path,
        "explorer": s2l.live_explorer.model_path if s2l.live_explorer else None,
        "teacher": s2l.distill.teacher_path if s2l.distill else None,
    }
    return {name: parameter_count(path) if path else None for name, path in paths.items()}


def run(prepared: Prepared) -> None:
    """Train. Blocks until verl's task runner ends; an exception inside it is raised here. Raises ResourceError: another
    run writes to the same folder; the run names a cluster that does not answer or fit."""
    from s2l_ext.training.registration import require_registered

    require_registered("driver")
    folder = Path(prepared.cfg.trainer.default_local_dir)
    with held(folder, "training run", "Wait for it or choose another trainer.default_local_dir"):
        _write_description(prepared, folder)
        _hand_over(prepared)


def _write_description(prepared: Prepared, folder: Path) -> None:
    write_atomically(folder / CONFIG_FILE, _masked_yaml(prepared.cfg))
    needed = gpus_needed(prepared.cfg, prepared.s2l)
    plan = prepared.plan | {"parameters": parameters(prepared), "accelerators": needed}
    write_atomically(folder / PLAN_FILE, json.dumps(masked(plan), indent=1) + "\n")


def _hand_over(prepared: Prepared) -> None:
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo

    address = cluster_address(prepared.cfg)
    now = needed_now(prepared.cfg, prepared.s2l)
    runner = CheckedRunner(TaskRunnerV1, prepared.cfg, now) if address else TaskRunnerV1
    if address is None:
        fork_workers(prepared.cfg)
    with joining(address):
        run_ppo(prepared.cfg, task_runner_class=runner)
