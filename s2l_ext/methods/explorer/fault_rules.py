"""Rules of ``s2l.explorer.on_failure``: what each answer to a failed explorer reads, and where it cannot apply."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.config import ExplorerConfig

KEY = "s2l.explorer"
RESTART_KEYS = ("max_restarts", "restart_backoff_s", "start_timeout_s")


def check_faults(explorer: ExplorerConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on settings of a restart that never happens and on a learner that cannot stand in."""
    if explorer.on_failure == "fail":
        unread = RESTART_KEYS[:2] if explorer.is_colocated else RESTART_KEYS  # a turn may take start_timeout_s as well
        _refuse_changed(explorer, unread, "on_failure=fail: the run ends with the first failure")
    elif explorer.max_restarts == 0:
        _refuse_changed(explorer, RESTART_KEYS[1:], "max_restarts=0: no server is started again")
        if explorer.on_failure == "wait":
            raise ConfigError(
                f"{KEY}.max_restarts=0 with {KEY}.on_failure=wait would wait for a server that is never started again. "
                f"Set {KEY}.max_restarts to 1 or more, or {KEY}.on_failure=fail."
            )
    if explorer.on_failure == "learner" and setting(cfg, "s2l.distill") is not None:
        raise ConfigError(
            f"{KEY}.on_failure=learner with s2l.distill would take a loss that is meant for the teacher's rows on the "
            f"student's own. Set {KEY}.on_failure=wait or fail."
        )
    return []


def _refuse_changed(explorer: ExplorerConfig, names: tuple[str, ...], why: str) -> None:
    default = ExplorerConfig(model_path="")
    for name in names:
        value = getattr(explorer, name)
        if value != getattr(default, name):
            raise ConfigError(f"{KEY}.{name}={value} would be ignored with {KEY}.{why}. Leave it out.")
