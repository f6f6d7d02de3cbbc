"""The checks before a run, in one list for the driver and for the trainer, which verl's own command may start."""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from s2l_ext.methods.registry import S2LConfig, methods_of
from s2l_ext.training.checkpoint_files import check_files, check_workers
from s2l_ext.training.controller_state import resume_state
from s2l_ext.training.needed import checkpoint_folder
from s2l_ext.training.preflight import check_inputs
from s2l_ext.training.rules import check_against_verl


def check_before_run(
    cfg: DictConfig, s2l: S2LConfig, inputs: bool = True
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """Check settings, the checkpoint and, with ``inputs``, models and data files; no model is loaded. Returns warnings,
    and the saved states of the checkpoint that the run continues, by key. Raises S2LError: the run cannot be right."""
    warnings = check_against_verl(s2l, cfg)
    if inputs:
        warnings += check_inputs(cfg, s2l)
    folder = checkpoint_folder(cfg)
    check_files(folder)
    check_workers(folder, cfg)
    resumed = resume_state(s2l, cfg)
    for method in methods_of(s2l, cfg):
        method.check_start((method.state_key or method.block) in resumed)
    return warnings, resumed
