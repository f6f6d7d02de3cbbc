"""verl's V1 trainers with the methods of this package, one class for each of verl's modes."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig
from verl.experimental.separation.engine_workers import DetachActorWorker
from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from s2l_ext.config.modes import MODE_KEY, TRAINERS
from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill.worker import DistillActorWorker
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.platforms.patches.training import check_before_every_trainer, silence_faulty_line
from s2l_ext.training.actor_worker import S2LActorWorker
from s2l_ext.training.trainer import S2LTrainerMixin


@register_trainer(TRAINERS["sync"])
class S2LTrainer(S2LTrainerMixin, PPOTrainerSync):
    """Every step samples its own prompts and trains on them."""

    mode = "sync"


@register_trainer(TRAINERS["colocate_async"])
class S2LColocateAsyncTrainer(S2LTrainerMixin, PPOTrainerColocateAsync):
    """Prompts are drawn ahead; sessions that are unfinished when a step has enough continue after its update."""

    mode = "colocate_async"


class DetachedActorWorker(S2LActorWorker, DetachActorWorker):
    """Our loss, with verl's copies of the weights on the CPU (``DetachActorWorker``)."""


class DetachedDistillWorker(DistillActorWorker, DetachActorWorker):
    """The divergence to the teacher, with verl's copies of the weights."""


@register_trainer(TRAINERS["separate_async"])
class S2LSeparateAsyncTrainer(S2LTrainerMixin, PPOTrainerSeparateAsync):
    """Prompts are drawn ahead and sampled on separate GPUs while the learner trains."""

    mode = "separate_async"
    detached_workers = MappingProxyType(
        {S2LActorWorker: DetachedActorWorker, DistillActorWorker: DetachedDistillWorker}
    )

    def _setup(self) -> None:
        with silence_faulty_line():
            super()._setup()


def refuse_methods_of_verls_own(trainer: Any, config: DictConfig) -> None:
    """Raise ConfigError for a trainer of verl's own where the block ``s2l`` turns a method on."""
    on = [] if isinstance(trainer, S2LTrainerMixin) else list(parse_s2l(config.get("s2l")).blocks)
    if on:
        given = config.trainer.v1.trainer_mode
        raise ConfigError(
            f"{MODE_KEY}={given}: verl's own trainer does not read the block s2l, which turns on {', '.join(on)}. "
            f"Set {MODE_KEY}={TRAINERS.get(given, 's2l')}, or leave the block out."
        )


check_before_every_trainer(refuse_methods_of_verls_own)
