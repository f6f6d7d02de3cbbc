"""What verl and vLLM load through their entry points: registrations, nothing else.

verl imports this module in every process that imports verl and swallows any exception at DEBUG level, so
``training.registration.require_registered`` is called on the driver and inside the workers, where a failure is loud.
"""

from __future__ import annotations

from types import ModuleType

import wrapt

from s2l_ext.platforms import cpu_chosen
from s2l_ext.platforms.patches import training as training_patches

SEEDED_AGENT_LOOP = "s2l_seeded"


def _load_trainers() -> None:
    from s2l_ext.training import trainers_by_mode  # noqa: F401  (registers the trainers with verl)


def _register_trainers(_: ModuleType) -> None:
    from s2l_ext.platforms.patches.training import load_before_trainers_are_looked_up

    load_before_trainers_are_looked_up(_load_trainers)


def _register_agent_loop(agent_loop: ModuleType) -> None:
    agent_loop._agent_loop_registry[SEEDED_AGENT_LOOP] = {
        "_target_": "s2l_ext.training.seeded_agent_loop.SeededAgentLoop"
    }


def _register_checkpoint_engine(_: ModuleType) -> None:
    from s2l_ext.platforms import object_store_engine  # noqa: F401  (registers itself with verl)


def register_vllm() -> None:
    """Entry point ``vllm.general_plugins``: called in vLLM's own worker processes too."""
    if cpu_chosen():
        from s2l_ext.platforms import vllm_cpu
        from s2l_ext.platforms.patches import cpu as patches

        vllm_cpu.install_alias()
        patches.hook("vllm")


def register_verl() -> None:
    """Entry point ``verl.plugins``: runs when the module is imported."""
    training_patches.hook()
    wrapt.register_post_import_hook(_register_trainers, "verl.trainer.ppo.v1")
    wrapt.register_post_import_hook(_register_agent_loop, "verl.experimental.agent_loop.agent_loop")
    if cpu_chosen():
        from s2l_ext.platforms import cpu
        from s2l_ext.platforms.patches import cpu as patches

        cpu.register()
        patches.hook("verl", "torch")
        wrapt.register_post_import_hook(_register_checkpoint_engine, "verl.checkpoint_engine.base")
        register_vllm()


register_verl()
