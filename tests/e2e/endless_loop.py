"""An agent loop with a session that never ends, for ``rollout.agent.agent_loop_config_path``."""

import asyncio
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopOutput

from s2l_ext.training.seeded_agent_loop import SeededAgentLoop

STEP, SESSION = 2, 5


class EndlessAgentLoop(SeededAgentLoop):
    """The seeded loop; at step ``STEP`` session ``SESSION`` of every group waits for ever."""

    async def run(self, sampling_params: dict[str, Any], priority: int = 0, **kwargs: Any) -> AgentLoopOutput:
        if (int(kwargs["global_steps"]), int(kwargs["session_id"])) == (STEP, SESSION):
            await asyncio.Event().wait()
        return await super().run(sampling_params, priority=priority, **kwargs)
