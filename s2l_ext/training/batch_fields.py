"""Names in the messages of driver and workers: columns of rows, keys of a batch, metrics of the loss.

Imports nothing: a worker process reads it while verl's trainer package, and with it our trainer, is still being
imported.
"""

from __future__ import annotations

SLOTS_FIELD = "s2l_explorer_slots"
SOURCE_FIELD = "s2l_source"  # data sets may have a column "source", and verl keeps columns beside ours
STORED_FIELD = "s2l_stored_rows"
"""Numbers of the stored rollouts for a group's first sessions, separated by blanks."""
KL_BETA_FIELD = "s2l_kl_beta"
GUIDED_FIELD = "s2l_guided_sessions"
LENGTH_FIELD = "s2l_guidance_length"
PREFIX_FIELD = "s2l_prefix_len"
IS_CAP_FIELD = "s2l_is_cap"
"""Largest importance weight of the explorer's tokens; where the batch has it, the loss computes the weights."""
WEIGHTS = "rollout_is_weights"
"""verl's column, which its policy losses multiply in."""
DISTILL_BLOCK = "s2l_distill"
"""Key of ``actor_rollout_ref`` where the driver puts ``s2l.distill``: verl gives workers that part only."""

KL_BETA_MIN, KL_BETA_MAX = "s2l_kl_beta_min", "s2l_kl_beta_max"
"""verl reduces a metric by the word in its name: smallest and largest over micro-batches, mini-batches and workers."""

SUM_PREFIX = "s2l_sum"
"""Numerators and denominators travel as sums; the driver divides."""


LEARNER = "learner"
EXPLORER = "explorer"
SOURCES = (LEARNER, EXPLORER)

GUIDED, PLAIN = "guided", "plain"
"""Of the learner's rows: those that continue a trace, and the others."""
