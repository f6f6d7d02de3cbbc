"""What a trainer changes before verl's own start: where log lines go, and settings that a feature sets."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from omegaconf import DictConfig, open_dict

from s2l_ext.methods.base import Method
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.verl_rules import AGENT_LOOP_MANAGER


def log_like_verl() -> None:
    """Send this package's log lines where verl's task runner sends its own; the root logger shows warnings only."""
    verl_logger, own = logging.getLogger("verl"), logging.getLogger("s2l_ext")
    own.handlers, own.propagate = verl_logger.handlers, verl_logger.propagate
    own.setLevel(verl_logger.level)


def adapt(config: DictConfig, s2l: S2LConfig, methods: Sequence[Method], mode: str) -> None:
    """Set what methods need. verl's base class and its block ``trainer.v1.<mode>`` go by verl's own mode name."""
    with open_dict(config):
        config.trainer.v1.trainer_mode = mode
        if s2l.own_manager:
            config.actor_rollout_ref.rollout.agent.agent_loop_manager_class = AGENT_LOOP_MANAGER
    for method in methods:
        method.adapt()
