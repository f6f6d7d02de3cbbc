"""Rules between the ``s2l:`` block and verl's own settings. A rule raises on the impossible and returns warnings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from omegaconf import DictConfig

from s2l_ext.config.row_split import check_row_split
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.brought import checked_value
from s2l_ext.methods.registry import S2LConfig, methods_of
from s2l_ext.training.combination_rules import check_combinations
from s2l_ext.training.mode_rules import check_mode
from s2l_ext.training.placement_rules import check_placement
from s2l_ext.training.verl_rules import check_verl


def check_against_verl(s2l: S2LConfig, cfg: DictConfig) -> list[str]:
    """Apply every rule.

    Args:
        s2l: the parsed block.
        cfg: verl's whole configuration.

    Returns:
        Warnings, one sentence each.

    Raises:
        ConfigError: a combination that cannot run or would silently ignore a setting.
    """
    _check_trainer(cfg)
    warnings = [*check_mode(s2l, cfg), *_check_kept(cfg)]
    _check_dataloader(s2l, cfg)
    check_placement(s2l)
    for method in methods_of(s2l, cfg):
        warnings += checked_value(method, "check", method.check(), list)
    check_combinations(s2l, cfg)
    warnings += check_verl(s2l, cfg)
    check_row_split(cfg)
    return warnings


# ---- the trainer and the data loader ------------------------------------------------------------------------------


def _check_trainer(cfg: DictConfig) -> None:
    if setting(cfg, "trainer.use_v1") is False:
        raise ConfigError(
            "trainer.use_v1=False: this package extends verl's V1 trainer. Leave the key out, or run verl's legacy "
            "trainer with `python -m verl.trainer.main_ppo`."
        )


def _check_kept(cfg: DictConfig) -> list[str]:
    """verl deletes old weights once the new ones are written, and names the new checkpoint the latest after that."""
    if setting(cfg, "trainer.max_actor_ckpt_to_keep") != 1 or (setting(cfg, "trainer.save_freq") or 0) <= 0:
        return []
    return [
        "trainer.max_actor_ckpt_to_keep=1: verl deletes the old weights before the new checkpoint is complete, so a "
        "run that is killed in between cannot be resumed. Set 2."
    ]


@dataclass(frozen=True)
class PrefetchRule:
    """A feature that data-loader worker processes would break, and why."""

    feature: str
    active: Callable[[S2LConfig, DictConfig], bool]
    reason: str


PREFETCH_RULES = (
    PrefetchRule(
        feature="trainer.device=cpu",
        active=lambda s2l, cfg: setting(cfg, "trainer.device") == "cpu",
        reason="each worker forks the driver, a process full of Ray threads, on a machine that has few cores to spare",
    ),
    PrefetchRule(
        feature="s2l.curriculum",
        active=lambda s2l, cfg: s2l.curriculum is not None,
        reason="workers fetch prompts ahead, drawn before the pass rates of the step in between are known",
    ),
)


def _check_dataloader(s2l: S2LConfig, cfg: DictConfig) -> None:
    workers = whole_number(cfg, "data.dataloader_num_workers")
    broken = [rule for rule in PREFETCH_RULES if workers > 0 and rule.active(s2l, cfg)]
    if broken:
        reasons = "; ".join(f"{rule.feature}: {rule.reason}" for rule in broken)
        raise ConfigError(f"data.dataloader_num_workers={workers} breaks {reasons}. Set data.dataloader_num_workers=0.")
