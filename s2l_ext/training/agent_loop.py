"""Who samples each session of a group: the explorer the first ones, then guided sessions, then plain ones.

The driver makes the plan. It travels with the prompts as ``s2l_explorer_slots``, ``s2l_guided_sessions`` and
``s2l_guidance_length``; workers keep no state. The worker that samples a row sets its ``s2l_source`` and
``s2l_prefix_len``.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Mapping
from typing import Any, cast

import ray
from verl.trainer.ppo.v1.agent_loop_tq import AgentLoopManagerTQ, AgentLoopWorkerTQ

from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import DataError
from s2l_ext.methods.explorer.serving.client import ExplorerFailed, SessionFaults
from s2l_ext.methods.explorer.serving.stored_client import StoredClient
from s2l_ext.methods.guidance.client import GuidedClient, answer_of, guidance_ids, trace_of
from s2l_ext.methods.guidance.trace_checks import read_teacher_rollouts
from s2l_ext.methods.registry import S2LConfig, parse_s2l
from s2l_ext.platforms.patches.training import construct_sessions, share_puts
from s2l_ext.store.reader import RolloutStore
from s2l_ext.training.batch_fields import (
    EXPLORER,
    GUIDED_FIELD,
    LEARNER,
    LENGTH_FIELD,
    PREFIX_FIELD,
    SLOTS_FIELD,
    SOURCE_FIELD,
    STORED_FIELD,
)
from s2l_ext.training.registration import require_registered
from s2l_ext.training.session_cost import BatchedPuts, construct

_WorkerBase = cast(Any, AgentLoopWorkerTQ).__ray_metadata__.modified_class  # verl decorates the class with @ray.remote


class S2LAgentLoopWorker(_WorkerBase):  # type: ignore[misc, valid-type]
    """verl's worker. The changes are a session's client, its sampling parameters, and the mask of its guidance."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        require_registered("agent-loop worker")
        construct_sessions(construct)
        share_puts(BatchedPuts)
        super().__init__(*args, **kwargs)
        self.s2l: S2LConfig = parse_s2l(self.config.get("s2l"))
        teacher = self.s2l.guidance.teacher_rollouts if self.s2l.guidance else None
        self._teacher_rollouts = read_teacher_rollouts(teacher) if teacher else None
        stored = self.s2l.offline_explorer
        self._store = RolloutStore(stored.store, verify=False) if stored else None

    def _with_client(self, client: Any) -> S2LAgentLoopWorker:
        """This worker with another client; a shallow copy shares everything else. Sessions run side by side in one
        event loop, so the worker's own client must not change."""
        view = copy.copy(self)
        view.llm_client = client
        return view

    async def _run_agent_loop(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], *, session_id: int, **kwargs: Any
    ) -> Any:
        # verl passes every column of the prompt on, to the agent loop too: take ours out before it
        slots, guided, length = (kwargs.pop(name, 0) for name in (SLOTS_FIELD, GUIDED_FIELD, LENGTH_FIELD))
        stored = kwargs.pop(STORED_FIELD, "").split()
        slots = len(stored) if self._store else slots
        explores = not trajectory["validate"] and session_id < slots
        is_guided = not trajectory["validate"] and slots <= session_id < slots + guided
        if explores and self._store is None:
            return await self._explorer_session(sampling_params, trajectory, session_id=session_id, **kwargs)
        if explores:
            worker = self._from_store(kwargs, int(stored[session_id]))
        else:
            worker = self._guided(kwargs, length) if is_guided else self
        if self.s2l.mixes_rollouts:
            kwargs[SOURCE_FIELD] = EXPLORER if explores else LEARNER
        return await self._limited(worker, sampling_params, trajectory, session_id=session_id, **kwargs)

    async def _limited(self, worker: Any, params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any) -> Any:
        """A session of the learner, or from the store, under its time limit. A validation has no limit."""
        limit = None if trajectory["validate"] else self.s2l.rollout.session_timeout_s
        started = time.monotonic()
        try:
            return await asyncio.wait_for(_WorkerBase._run_agent_loop(worker, params, trajectory, **kwargs), limit)
        except TimeoutError as error:
            if limit is None or time.monotonic() - started < limit:  # a tool or reward timed out by itself
                raise
            raise TimeoutError(
                f"session {kwargs['session_id']} of prompt {kwargs['uid']} took longer than "
                f"s2l.rollout.session_timeout_s={limit:g}"
            ) from error

    async def _explorer_session(
        self, sampling_params: dict[str, Any], trajectory: dict[str, Any], **kwargs: Any
    ) -> Any:
        """The explorer samples it from its first turn to its last; after a failure ``on_failure`` decides. A row never
        mixes two models, because it has one source."""
        explorer, client = self.s2l.live_explorer, getattr(self.llm_client, "explorer", None)
        assert explorer is not None
        if client is None:
            raise RuntimeError(f"session {kwargs['session_id']} is the explorer's, but its servers are not running")
        own = {"temperature": explorer.temperature, "top_p": explorer.top_p, "top_k": explorer.top_k}
        params, faults, sampler = {**sampling_params, **own}, SessionFaults(explorer), EXPLORER
        while sampler == EXPLORER:
            view = self._with_client(client.for_session())
            source = {SOURCE_FIELD: EXPLORER}
            try:
                return await _WorkerBase._run_agent_loop(view, dict(params), trajectory, **source, **kwargs)
            except ExplorerFailed as failure:
                sampler = await faults.next_sampler(view.llm_client, failure)
        return await self._limited(self, sampling_params, trajectory, **{SOURCE_FIELD: LEARNER}, **kwargs)

    def _from_store(self, row: dict[str, Any], number: int) -> S2LAgentLoopWorker:
        """This worker for a session that the explorer sampled before the run."""
        assert self._store is not None
        name = prompt_id([dict(message) for message in row["raw_prompt"]], row.get("extra_info"))
        return self._with_client(
            StoredClient(self.llm_client, self._store.rollout(name, number), int(row["global_steps"]) - 1)
        )

    def _guided(self, row: dict[str, Any], length: int) -> S2LAgentLoopWorker:
        """This worker for a session that continues the prompt's trace; unchanged for a prompt without one."""
        guidance = self.s2l.guidance
        assert guidance is not None
        trace = trace_of(row, guidance.trace, self._teacher_rollouts)
        if trace is None:
            if guidance.missing_trace == "error":
                raise DataError(
                    f"s2l.guidance.trace={guidance.trace}: prompt {row.get('index')} has no trace to start from."
                )
            return self
        budget, answer = self.config.actor_rollout_ref.rollout.response_length, answer_of(row)

        def choose(prompt_ids: list[int]) -> list[int]:
            return guidance_ids(trace, self.tokenizer, prompt_ids, length, guidance, budget, answer)

        return self._with_client(GuidedClient(self.llm_client, choose, budget))

    async def _agent_loop_postprocess(self, output: Any, validate: bool, **kwargs: Any) -> None:
        if self.s2l.guidance is None or validate:
            return await super()._agent_loop_postprocess(output, validate, **kwargs)
        placed = getattr(self.llm_client, "placed", None) or []
        first = output[0] if isinstance(output, list) else output
        if not self.s2l.guidance.loss_on_guidance:
            first.response_mask[: len(placed)] = [0] * len(placed)
        return await super()._agent_loop_postprocess(output, validate, **{PREFIX_FIELD: len(placed)}, **kwargs)


class S2LAgentLoopManager(AgentLoopManagerTQ):
    """verl's manager with our worker. The trainer names it in ``rollout.agent.agent_loop_manager_class``."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        learner = parse_s2l(self.config.get("s2l")).placement.learner
        workers: Any = ray.remote(S2LAgentLoopWorker)
        chosen: Any = BesideLearner(workers, learner) if learner else workers
        self.agent_loop_workers_class = chosen


class BesideLearner:
    """An actor class pinned to the nodes of ``s2l.placement.learner``. verl spreads agent-loop workers over all nodes,
    so losing any node would lose one."""

    def __init__(self, actor_class: Any, labels: Mapping[str, str]) -> None:
        self._class, self._labels = actor_class, dict(labels)

    def options(self, **options: Any) -> Any:
        del options["scheduling_strategy"]
        return self._class.options(label_selector=self._labels, **options)
