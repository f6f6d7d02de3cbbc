"""Prompts that were drawn and not yet trained on, each with the plan that was made for it.

A synchronous step trains on the prompts it drew. An asynchronous step may train on those of an earlier step, and verl
may drop a prompt and draw another. So a plan is kept by its prompt's ``uid`` until it is trained on or dropped.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.errors import S2LError, StateMismatch
from s2l_ext.training.needed import EARLIER


@dataclass(frozen=True)
class PromptPlan:
    """What was decided for a prompt's group when it was drawn at ``step``, counted from 1: how many sessions are the
    explorer's (``slots``) and ``guided`` by ``length`` tokens, its ``index`` in the data set (None without a
    curriculum), and the ``stored`` rollouts that it takes (None where the explorer is live), ``reused`` of them not for
    the first time."""

    step: int
    slots: int = 0
    guided: int = 0
    length: int = 0
    index: int | None = None
    stored: int | None = None
    reused: int = 0

    @property
    def explorer_rows(self) -> int:
        """Sessions that the explorer really has."""
        return self.slots if self.stored is None else self.stored


class PendingPrompts:
    """Plans by prompt ``uid``, in the order of the draws. ``most_draws``: prompts that may be drawn between two steps;
    None without a limit."""

    def __init__(self, most_draws: int | None = None) -> None:
        self._plans: dict[str, PromptPlan] = {}
        self._most_draws = most_draws
        self._draws = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._plans)

    @property
    def plans(self) -> Mapping[str, PromptPlan]:
        return MappingProxyType(self._plans)

    @property
    def need_explorer(self) -> bool:
        """Whether a prompt waits for live explorer sessions, or may."""
        return any(plan.slots and plan.stored is None for plan in self._plans.values())

    def add(self, plans: Mapping[str, PromptPlan]) -> None:
        """Prompts are drawn. Raises S2LError: verl drops and draws again without end."""
        self._plans.update(plans)
        self._draws += len(plans)
        if self._most_draws is not None and self._draws > self._most_draws:
            raise S2LError(
                f"{self._draws} prompts were drawn since the last step and none could be trained on: verl dropped "
                "them. Their sessions fail (the error is in the log above, 'Error in _run_prompt'), or take longer "
                "than trainer.v1.sampler.max_off_policy_threshold steps. The same command resumes from the checkpoint."
            )

    def pop_all(self) -> dict[str, PromptPlan]:
        """Plans of a synchronous step: of every prompt that was drawn for it, in that order."""
        plans, self._plans, self._draws = self._plans, {}, 0
        return plans

    def pop_trained(
        self, trained: Collection[str], waiting: Collection[str], strict: bool = True
    ) -> dict[str, PromptPlan]:
        """Plans of the prompts that the step trains on, in the order of the draws; the rest stays if it is ``waiting``,
        still in verl's queue. What is in neither was dropped. Raises StateMismatch: ``strict``, and a row's plan is not
        known."""
        unknown = [uid for uid in trained if uid not in self._plans]
        if unknown and strict:
            raise StateMismatch(
                f"prompt {unknown[0]} (one of {len(unknown)}) is in verl's queue and no plan of it is known: the "
                "checkpoint's transfer_queue and s2l_state.json are not of one run. "
                f"{EARLIER}"
            )
        taken = {uid: plan for uid, plan in self._plans.items() if uid in trained}
        kept = {uid: plan for uid, plan in self._plans.items() if uid in waiting and uid not in taken}
        self.dropped = len(self._plans) - len(taken) - len(kept)
        self._plans, self._draws = kept, 0
        return taken

    def metrics(self, step: int, taken: Mapping[str, PromptPlan]) -> dict[str, float]:
        """``s2l/async/...`` of a step that trained on ``taken``."""
        lags = [step - plan.step for plan in taken.values()] or [0]
        return {
            "s2l/async/staleness_mean": sum(lags) / len(lags),
            "s2l/async/staleness_max": float(max(lags)),
            "s2l/async/pending_prompts": float(len(self)),
            "s2l/async/dropped_prompts": float(self.dropped),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"plans": {uid: asdict(plan) for uid, plan in self._plans.items()}, "order": list(self._plans)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`. The order is stored too, because a state is written with sorted keys."""
        self._plans = {uid: PromptPlan(**state["plans"][uid]) for uid in state["order"]}


class Draw:
    """Prompts that verl fetched together; each method writes its part of their plans in turn.

    A value is stored per row, not per batch: after a restart verl re-sends rows of several draws in one batch.

    Attributes:
        batch: the prompts' rows.
        step: at which they were drawn, counted from 1.
        uids: (P,) of the prompts.
        slots: explorer sessions of every group; 0 without an explorer.
    """

    def __init__(self, batch: TensorDict, step: int) -> None:
        self.batch, self.step, self.slots = batch, step, 0
        self.uids = list(batch["uid"])
        self._plans: list[dict[str, Any]] = [{"step": step} for _ in self.uids]

    def send(self, field: str, values: Sequence[Any]) -> None:
        """Give the workers a value for every prompt."""
        tu.assign_non_tensor_stack(self.batch, field, list(values))

    def note(self, name: str, values: Sequence[Any]) -> None:
        """Keep a value of every prompt's :class:`PromptPlan` until its rows are trained on."""
        for plan, value in zip(self._plans, values, strict=True):
            plan[name] = value

    def same(self, value: Any) -> list[Any]:
        """(P,) the value for every prompt."""
        return [value] * len(self.uids)

    def plans(self) -> dict[str, PromptPlan]:
        return {uid: PromptPlan(**plan) for uid, plan in zip(self.uids, self._plans, strict=True)}
