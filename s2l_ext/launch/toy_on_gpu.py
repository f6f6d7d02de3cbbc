"""Recipes made for the CPU on a machine with an accelerator: on its CPU where vLLM has one, else on the accelerator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import yaml
from omegaconf import DictConfig

from s2l_ext.config.verl_settings import flattened, setting
from s2l_ext.launch.accelerators import accelerators_here
from s2l_ext.launch.compose import PACKAGED_RECIPES
from s2l_ext.platforms import cpu_is_impossible

OVERLAY = PACKAGED_RECIPES / "base" / "gpu_toy.yaml"
COLOCATED = "++s2l.explorer.placement=colocated"


def compose_for_this_machine(
    compose: Callable[[Sequence[str]], DictConfig], overrides: Sequence[str]
) -> tuple[DictConfig, list[str]]:
    """The configuration, and a warning where it is not the recipe's own. ``compose``: composes the recipe with Hydra
    overrides. ``overrides``: the user's, which win."""
    cfg = compose(overrides)
    if cfg.trainer.device != "cpu" or not cpu_is_impossible():
        return cfg, []
    changed = [*settings(), *overrides]
    cfg = compose(changed)
    one = accelerators_here(cfg)
    if one and one.count == 1 and setting(cfg, "s2l.explorer.model_path"):
        cfg = compose([COLOCATED, *changed])
    return cfg, [
        "made for the CPU, this recipe runs on the accelerator, for which vLLM was built here: "
        "recipes/base/gpu_toy.yaml has the settings. `make setup` makes an environment for the CPU."
    ]


def settings() -> list[str]:
    """The overlay as Hydra overrides."""
    tree = yaml.safe_load(OVERLAY.read_text(encoding="utf-8"))
    return [f"++{key}={'null' if value is None else value}" for key, value in flattened(tree).items()]
