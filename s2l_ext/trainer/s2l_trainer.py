"""verl's V1 trainers with the methods of this package, one class for each of verl's modes."""

from __future__ import annotations

from verl.trainer.ppo.v1.trainer_base import register_trainer
from verl.trainer.ppo.v1.trainer_colocate_async import PPOTrainerColocateAsync
from verl.trainer.ppo.v1.trainer_separate_async import PPOTrainerSeparateAsync
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync

from s2l_ext.registration import TRAINERS
from s2l_ext.trainer.methods import S2LMethods


@register_trainer(TRAINERS["sync"])
class S2LTrainer(S2LMethods, PPOTrainerSync):
    """Every step samples its own prompts and trains on them."""

    mode = "sync"


@register_trainer(TRAINERS["colocate_async"])
class S2LColocateAsyncTrainer(S2LMethods, PPOTrainerColocateAsync):
    """Prompts are drawn ahead; sessions that are unfinished when a step has enough go on after its update."""

    mode = "colocate_async"


@register_trainer(TRAINERS["separate_async"])
class S2LSeparateAsyncTrainer(S2LMethods, PPOTrainerSeparateAsync):
    """Prompts are drawn ahead and sampled on GPUs of their own while the learner trains."""

    mode = "separate_async"
