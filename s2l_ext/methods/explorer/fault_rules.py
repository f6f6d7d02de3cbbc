"""Rules of ``s2l.explorer.on_failure``: what each answer to a failed explorer reads, and where it cannot apply."""

from __future__ import annotations

from omegaconf import DictConfig

from s2l_ext.config.unused import refuse_changed
from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.methods.explorer.config import LiveExplorer

KEY = "s2l.explorer"


def check_faults(explorer: LiveExplorer, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on settings of a restart that never happens and on a learner that cannot stand in."""
    restart = ["max_restarts", "restart_backoff_s", "start_timeout_s"]
    if explorer.on_failure == "fail":
        unread = restart[:2] if explorer.is_colocated else restart  # a turn may take start_timeout_s as well
        refuse_changed(explorer, unread, KEY, f"{KEY}.on_failure=fail: the run ends with the first failure")
    elif explorer.max_restarts == 0:
        refuse_changed(explorer, restart[1:], KEY, f"{KEY}.max_restarts=0: no server is started again")
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
