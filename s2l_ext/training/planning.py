"""The plan of every prompt that is drawn: decided on the driver, sent to the workers with the prompt's row."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from statistics import mean
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.methods.curriculum.controller import StepPrompts
from s2l_ext.methods.explorer.stored_controller import StepRollouts
from s2l_ext.methods.explorer.stored_draws import Taken
from s2l_ext.methods.guidance.controller import StepGuidance
from s2l_ext.training.batch_fields import GUIDED_FIELD, LENGTH_FIELD, SLOTS_FIELD
from s2l_ext.training.pending_prompts import PromptPlan


def make_plans(
    batch: TensorDict,
    step: int,
    slots: int | None,
    guidance: StepGuidance | None,
    stored: StepRollouts | None,
    prompts: StepPrompts | None,
) -> dict[str, PromptPlan]:
    """Write each row's plan into the prompts drawn at ``step``, and return it by ``uid``.

    A value stands on its row, not on the batch: rows of several draws may be sent again together after a restart.

    Args:
        slots: the explorer's sessions of a group; None without an explorer.
    """
    uids = list(batch["uid"])
    guided, length = (guidance.sessions(slots or 0), guidance.length(step)) if guidance else (0, 0)
    if slots is not None:
        _send(batch, SLOTS_FIELD, slots)
    if guidance:
        _send(batch, GUIDED_FIELD, guided)
        _send(batch, LENGTH_FIELD, length)
    taken: Sequence[Taken | None] = stored.send(batch, slots or 0) if stored else [None] * len(uids)
    indices: Sequence[int | None] = prompts.drawn(uids) if prompts else [None] * len(uids)
    return {
        uid: PromptPlan(step, slots or 0, guided, length, index, *_counts(one))
        for uid, index, one in zip(uids, indices, taken, strict=True)
    }


def planned_length(plans: Collection[PromptPlan]) -> float:
    """Guidance tokens that a step's rows were drawn with: the mean over prompts that have guided sessions, over all
    prompts where the explorer has every session."""
    guided = [plan.length for plan in plans if plan.guided]
    return mean(guided or [plan.length for plan in plans])


def _send(batch: TensorDict, field: str, value: Any) -> None:
    tu.assign_non_tensor_stack(batch, field, [value] * len(batch))


def _counts(taken: Taken | None) -> tuple[int | None, int]:
    return (None, 0) if taken is None else (len(taken.rollouts), taken.again)
