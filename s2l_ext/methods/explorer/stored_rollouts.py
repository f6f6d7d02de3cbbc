"""The step's stored explorer rollouts: which ones each group takes, sent to the workers as numbers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from tensordict import TensorDict

from s2l_ext.data.prompts import prompt_id
from s2l_ext.methods.explorer.config import OfflineExplorer
from s2l_ext.methods.explorer.stored_draws import StoredRolloutSampler
from s2l_ext.store.reader import RolloutStore
from s2l_ext.training.batch_fields import STORED_FIELD
from s2l_ext.training.pending_prompts import PromptPlan

if TYPE_CHECKING:
    from s2l_ext.training.planning import Draw

STORE_KEY = "s2l.explorer.store"


class StoredRollouts:
    """``G_w`` stored rollouts for every group of a step.

    Args:
        explorer: the ``s2l.explorer`` block.
        seed: of the order in which a prompt's rollouts are taken.
    """

    def __init__(self, explorer: OfflineExplorer, seed: int) -> None:
        store = RolloutStore(explorer.store, STORE_KEY, verify=False)  # preflight has read every byte of it
        self._counts = store.counts()
        self._draws = StoredRolloutSampler(self._counts, explorer.on_exhausted, seed)

    def draw(self, draw: Draw) -> None:
        """Take ``draw.slots`` rollouts for every prompt, and send their numbers with its row."""
        taken = [self._draws.draw(name, draw.slots) for name in _prompt_ids(draw.batch)]
        draw.send(STORED_FIELD, [" ".join(map(str, one.indices)) for one in taken])
        draw.note("stored", [len(one.indices) for one in taken])
        draw.note("reused", [one.num_reused for one in taken])

    @staticmethod
    def metrics(plans: Iterable[PromptPlan]) -> dict[str, float]:
        """``s2l/explorer/...`` of the step's prompts."""
        counts = [(plan.slots, plan.explorer_rows, plan.reused) for plan in plans]
        slots, rows, reused = (float(sum(column)) for column in zip(*counts, strict=True))
        return {
            "s2l/explorer/stored_rows": rows,
            "s2l/explorer/reused_rows": reused,
            "s2l/explorer/fallback_rows_exhausted": slots - rows,
        }

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


def _prompt_ids(batch: TensorDict) -> list[str]:
    extras = list(batch["extra_info"]) if "extra_info" in batch else [None] * len(batch)
    chats = [[dict(message) for message in chat] for chat in batch["raw_prompt"]]
    return [prompt_id(chat, extra) for chat, extra in zip(chats, extras, strict=True)]
