"""Who samples a session: the learner, or the explorer for the first slots of every group.

The plan for a step is made on the driver and travels with the batch as ``s2l_explorer_slots``; workers keep no
state. Every row leaves with ``s2l_source`` set by the worker that sampled it.
"""

from __future__ import annotations

import copy
from typing import Any

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ
from verl.workers.rollout.llm_server import LLMServerClient

from s2l_ext.algorithms.sources import EXPLORER, LEARNER
from s2l_ext.config import S2LConfig, parse_s2l
from s2l_ext.registration import require_registered
from s2l_ext.rollout.plan import SLOTS_FIELD, SOURCE_FIELD

_WorkerBase = AgentLoopWorkerTQ.__ray_metadata__.modified_class  # verl decorates the class with @ray.remote


class S2LAgentLoopWorker(_WorkerBase):  # type: ignore[misc, valid-type]
    """verl's worker; the one change is the client and sampling parameters of explorer sessions."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_registered("agent-loop worker")
        super().__init__(*args, **kwargs)
        self.s2l: S2LConfig = parse_s2l(self.config.get("s2l"))
        self._as_explorer = self._with_client(self.llm_client.explorer)

    def _with_client(self, client: LLMServerClient | None) -> S2LAgentLoopWorker | None:
        """This worker talking to another model: everything but the client is shared."""
        if client is None:
            return None
        view = copy.copy(self)
        view.llm_client = client
        return view

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], *, session_id: int, **kwargs: Any
    ) -> Any:
        slots = kwargs.pop(SLOTS_FIELD, 0)
        explores = not trajectory["validate"] and session_id < slots
        worker = self._as_explorer if explores else self
        if worker is None:
            raise RuntimeError(
                f"session {session_id} is the explorer's ({slots} slots), but its servers are not running"
            )
        params = {**sampling_params, **self._explorer_sampling()} if explores else sampling_params
        source = EXPLORER if explores else LEARNER
        return await _WorkerBase._run_agent_loop(
            worker, params, trajectory, session_id=session_id, **{SOURCE_FIELD: source}, **kwargs
        )

    def _explorer_sampling(self) -> dict[str, Any]:
        explorer = self.s2l.explorer
        assert explorer is not None
        return {"temperature": explorer.temperature, "top_p": explorer.top_p, "top_k": explorer.top_k}


class S2LAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker; named in ``rollout.agent.agent_loop_manager_class`` by the trainer."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.agent_loop_workers_class = ray.remote(S2LAgentLoopWorker)
