"""What a run may cost, before it runs and after."""

from __future__ import annotations

import math
from contextlib import suppress

from omegaconf import DictConfig

from s2l_ext.config.run_steps import STEPS_KEY, run_steps
from s2l_ext.errors import ConfigError
from s2l_ext.report.ledger import Ledger
from s2l_ext.report.run import Run
from s2l_ext.training.batch_fields import LEARNER
from s2l_ext.training.inputs import steps_of_run

BEFORE = {
    "prompts": "trainer.total_training_steps, trainer.total_epochs or data.train_batch_size",
    "optimizer_steps": "trainer.total_training_steps, actor.ppo_mini_batch_size or actor.ppo_epochs",
    "rollouts": "actor_rollout_ref.rollout.n, or what changes prompts",
}
"""Quantities that the configuration tells, and what changes them."""
AFTER = {"learner_tokens": "tokens that the learner sampled", "flops": "FLOPs of everyone, by the report's cost model"}
"""Quantities that a finished run tells."""


def planned(cfg: DictConfig, engine: str) -> dict[str, int]:
    """Of the quantities :data:`BEFORE`, those of the whole run. Raises ConfigError where its steps are not known."""
    found = run_steps(cfg, None)  # the local loop has no epochs
    if engine == "verl":
        with suppress(OSError, ValueError):  # what is wrong with a file is said before the first run
            found = steps_of_run(cfg)
    if found is None:
        raise ConfigError(f"{STEPS_KEY}=null: how many steps engine {engine} does is not known. Set a whole number.")
    steps, batch = found.number, int(cfg.data.train_batch_size)
    actor, group = cfg.actor_rollout_ref.actor, int(cfg.actor_rollout_ref.rollout.n)
    updates = math.ceil(batch / int(actor.ppo_mini_batch_size)) * int(actor.ppo_epochs)
    return {"prompts": steps * batch, "optimizer_steps": steps * updates, "rollouts": steps * batch * group}


def spent(run: Run) -> dict[str, float | None]:
    """Of the quantities :data:`AFTER`, and wall-clock seconds; None for what the run does not tell."""
    totals = Ledger(run).totals(all_in=True)
    own = [value for _, value in run.series(f"s2l/source/{LEARNER}/tokens")]
    if not own:  # every row is the learner's
        rows = run.setting("data.train_batch_size") * run.setting("actor_rollout_ref.rollout.n")
        own = [mean * rows for _, mean in run.series("response_length/mean")]
    return {"learner_tokens": sum(own) if own else None, "flops": totals.flops, "seconds": totals.seconds}
