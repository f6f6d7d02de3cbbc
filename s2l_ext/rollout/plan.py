"""What the driver tells the workers about a step, and the client that lets them carry it out.

Kept apart from ``agent_loop``: a worker process imports that module while verl's trainer package, and with it our
trainer, is still being imported.
"""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.llm_server import LLMServerClient

SLOTS_FIELD = "s2l_explorer_slots"
SOURCE_FIELD = "s2l_source"
STORED_FIELD = "s2l_stored_rows"
"""Numbers of the stored rollouts that take a group's first sessions, apart by blanks."""
KL_BETA_FIELD = "s2l_kl_beta"
GUIDED_FIELD = "s2l_guided_sessions"
LENGTH_FIELD = "s2l_guidance_length"
PREFIX_FIELD = "s2l_prefix_len"
DISTILL_BLOCK = "s2l_distill"
"""Key of ``actor_rollout_ref`` where the driver leaves ``s2l.distill``: workers are given that part only."""


class TwoModelClient(LLMServerClient):
    """The learner's client carrying the explorer's into the agent-loop workers."""

    def __init__(self, *args: Any, explorer: LLMServerClient | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.explorer = explorer
