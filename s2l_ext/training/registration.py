"""A process that runs verl: does it have this package's registrations, and where do its log lines go?"""

from __future__ import annotations

import logging

from s2l_ext.config.modes import TRAINERS
from s2l_ext.errors import S2LError
from s2l_ext.platforms import cpu_chosen

TRAINER_NAME = TRAINERS["sync"]


class PluginNotRegistered(S2LError, RuntimeError):
    """A process runs verl without this package's registrations."""


def require_registered(where: str) -> None:
    """Raise unless verl in this process knows our trainer and runs on the platform that was chosen. ``where``: the
    process, as it should read in the message ("driver", "agent-loop worker", ...)."""
    from verl.plugin.platform import get_platform
    from verl.trainer.ppo.v1 import get_trainer_cls

    try:
        get_trainer_cls(TRAINER_NAME)
    except ValueError as error:
        raise PluginNotRegistered(
            f"{where}: verl does not know trainer '{TRAINER_NAME}'. Install s2l_ext in this process's environment "
            "(pip install -e .) and leave VERL_USE_EXTERNAL_PLUGINS unset or include 's2l' in it."
        ) from error
    if cpu_chosen() and get_platform().device_name != "cpu":
        raise PluginNotRegistered(
            f"{where}: VERL_PLATFORM=cpu is set, but verl started on '{get_platform().device_name}': "
            "verl was imported before the variable was set."
        )


def log_like_verl() -> None:
    """Send this package's log lines where verl's task runner sends its own; the root logger shows warnings only."""
    verl_logger, own = logging.getLogger("verl"), logging.getLogger("s2l_ext")
    own.handlers, own.propagate = verl_logger.handlers, verl_logger.propagate
    own.setLevel(verl_logger.level)


QUEUE = {"name": "TransferQueueController", "namespace": "transfer_queue"}
