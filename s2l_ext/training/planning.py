"""The plan of every prompt that is drawn: decided on the driver, sent to the workers with the prompt's row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.training.pending_prompts import PromptPlan


class Draw:
    """Prompts that verl fetched together; each method writes its part of their plans in turn.

    A value stands on its row, not on the batch: rows of several draws may be sent again together after a restart.

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
