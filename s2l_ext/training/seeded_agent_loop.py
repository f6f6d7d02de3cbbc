"""An agent loop whose every request carries its own seed, so that two runs sample the same tokens.

vLLM's engine-level seed fixes the order of random numbers, not which request draws which: with requests
arriving in another order a run differs. verl's ``full_determinism`` gives every request of a replica the same
seed, so all sessions of a group become copies. Here the seed depends on what the request is.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop


def request_seed(base: int, step: int, prompt: str, session: int) -> int:
    """A stable 31-bit seed for one session of one prompt in one step; ``prompt`` is whatever identifies it."""
    return zlib.crc32(f"{base}/{step}/{prompt}/{session}".encode()) & 0x7FFFFFFF


class SeededAgentLoop(SingleTurnAgentLoop):
    """verl's single-turn loop; the one change is ``seed`` among the sampling parameters."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        messages = json.dumps([dict(message) for message in kwargs["raw_prompt"]], sort_keys=True, default=str)
        prompt = f"{kwargs.get('index')}/{messages}"  # the index may be text, or the same for every row
        seed = request_seed(self.rollout_config.seed, int(kwargs["global_steps"]), prompt, int(kwargs["session_id"]))
        return await super().run({**sampling_params, "seed": seed}, priority=priority, **kwargs)
