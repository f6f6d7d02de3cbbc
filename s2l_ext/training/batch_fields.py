"""What the driver tells the workers about a prompt, and the client that lets them carry it out.

Kept apart from ``agent_loop``: a worker process imports that module while verl's trainer package, and with it our
trainer, is still being imported.
"""

from __future__ import annotations

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


def carrying(client: LLMServerClient, explorer: LLMServerClient | None) -> LLMServerClient:
    """The learner's client, of whatever class verl's mode uses, with the explorer's to the agent-loop workers.

    What verl does to the learner's servers between steps (abort, sleep, new weights) never reaches the explorer's:
    its sessions go on.
    """
    client.explorer = explorer
    return client
