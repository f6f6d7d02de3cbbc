"""The accelerators that a configuration is checked for: this machine's, or those that ``--for 8x80GB`` names."""

from __future__ import annotations

import importlib.util
import os
import re
from dataclasses import dataclass

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.utils.ray_cluster import current_cluster

GIB = 1 << 30
_FORM = re.compile(r"(\d+)\s*x\s*(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)", re.IGNORECASE)


@dataclass(frozen=True)
class Accelerators:
    """``count`` of them in all nodes, with ``size`` bytes of memory each."""

    count: int
    size: float

    def __str__(self) -> str:
        return f"{self.count}x{self.size / GIB:g}GB"


def parse_accelerators(text: str) -> Accelerators:
    """``8x80GB``: eight in all nodes, of the size in their name, which makers count in GiB. Raises ConfigError: another
    form, or none of them."""
    match = _FORM.fullmatch(text.strip())
    if match is None or not int(match[1]) or not float(match[2]):
        raise ConfigError(
            f"--for {text}: write how many accelerators the run gets in all and the memory of one, such as 8x80GB or "
            "1x24GB."
        )
    return Accelerators(int(match[1]), float(match[2]) * GIB)


def require_attention(cfg: DictConfig) -> None:
    """Raise ConfigError for attention, verl's default, that needs a package which is not here."""
    key = "actor_rollout_ref.model.override_config.attn_implementation"
    given = setting(cfg, key)
    wanted, packages = given or "flash_attention_2", ("flash_attn", "kernels")
    if wanted != "flash_attention_2" or any(importlib.util.find_spec(name) for name in packages):
        return
    whose = "" if given else ", which is verl's default"
    raise ConfigError(
        f"{key}={wanted}{whose}: flash-attn is not installed. Set ++{key}=sdpa, or install the extra "
        "`flash`, which is built against torch: pip install --no-build-isolation '.[flash]'."
    )


def accelerators_here(cfg: DictConfig) -> Accelerators | None:
    """This machine's; None for a run on the CPU, without CUDA, or in a cluster, whose nodes are asked later."""
    joins = cfg.ray_kwargs.ray_init.get("address") or os.environ.get("RAY_ADDRESS") or current_cluster()
    if cfg.trainer.device != "cuda" or joins:
        return None
    import torch

    count = torch.cuda.device_count()
    sizes = [torch.cuda.get_device_properties(index).total_memory for index in range(count)]
    return Accelerators(count, min(sizes)) if sizes else None
