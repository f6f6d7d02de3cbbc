"""The step's stored explorer rollouts: which ones each group takes, sent to the workers as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.data.prompts import prompt_id
from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.explorer.stored_draws import Taken, WithoutReplacement
from s2l_ext.store.reader import RolloutStore
from s2l_ext.training.batch_fields import STORED_FIELD
from s2l_ext.training.pending_prompts import PromptPlan

STORE_KEY = "s2l.explorer.store"


class StepRollouts:
    """``G_w`` stored rollouts for every group of a step.

    Args:
        explorer: the ``s2l.explorer`` block with ``source: offline``.
        seed: of the order in which a prompt's rollouts are taken.
    """

    def __init__(self, explorer: ExplorerConfig, seed: int) -> None:
        assert explorer.store is not None
        store = RolloutStore(explorer.store, STORE_KEY, verify=False)  # preflight has read every byte of it
        self._counts = store.counts()
        self._draws = WithoutReplacement(self._counts, explorer.too_few, seed)

    def send(self, batch: TensorDict, slots: int) -> list[Taken]:
        """Write each row's rollouts into the prompts that were drawn, and return them row by row."""
        taken = [self._draws.take(name, slots) for name in _prompt_ids(batch)]
        tu.assign_non_tensor_stack(batch, STORED_FIELD, [" ".join(map(str, one.rollouts)) for one in taken])
        return taken

    @staticmethod
    def metrics(plans: Iterable[PromptPlan]) -> dict[str, float]:
        """``s2l/explorer/...`` of the step's prompts."""
        counts = [(plan.slots, plan.explorer_rows, plan.reused) for plan in plans]
        slots, rows, reused = (float(sum(column)) for column in zip(*counts, strict=True))
        return {
            "s2l/explorer/stored_rows": rows,
            "s2l/explorer/reused_rows": reused,
            "s2l/explorer/handed_to_learner": slots - rows,
        }

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


def _prompt_ids(batch: TensorDict) -> list[str]:
    extras = list(batch["extra_info"]) if "extra_info" in batch else [None] * len(batch)
    chats = [[dict(message) for message in chat] for chat in batch["raw_prompt"]]
    return [prompt_id(chat, extra) for chat, extra in zip(chats, extras, strict=True)]
