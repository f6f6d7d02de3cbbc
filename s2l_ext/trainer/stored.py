"""The step's stored explorer rollouts: which ones each group takes, sent to the workers as numbers."""

from __future__ import annotations

from typing import Any

from tensordict import TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.algorithms.stored_rows import WithoutReplacement
from s2l_ext.config.schema import ExplorerConfig
from s2l_ext.data.prompts import prompt_id
from s2l_ext.data.rollout_store import RolloutStore
from s2l_ext.rollout.plan import STORED_FIELD

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
        self.applied: dict[str, float] = {}

    def send(self, batch: TensorDict, slots: int) -> dict[str, int]:
        """Write each row's rollouts into the step's prompts; returns explorer sessions by prompt ``uid``."""
        taken = [self._draws.take(name, slots) for name in _prompt_ids(batch)]
        tu.assign_non_tensor_stack(batch, STORED_FIELD, [" ".join(map(str, one.rollouts)) for one in taken])
        rows = sum(len(one.rollouts) for one in taken)
        self.applied = {
            "stored_rows": float(rows),
            "reused_rows": float(sum(one.again for one in taken)),
            "handed_to_learner": float(slots * len(taken) - rows),
        }
        return {uid: len(one.rollouts) for uid, one in zip(batch["uid"], taken, strict=True)}

    def metrics(self) -> dict[str, float]:
        """``s2l/explorer/...`` of the step."""
        return {f"s2l/explorer/{name}": value for name, value in self.applied.items()}

    def state_dict(self) -> dict[str, Any]:
        return self._draws.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._draws.load_state_dict(state)


def _prompt_ids(batch: TensorDict) -> list[str]:
    extras = list(batch["extra_info"]) if "extra_info" in batch else [None] * len(batch)
    chats = [[dict(message) for message in chat] for chat in batch["raw_prompt"]]
    return [prompt_id(chat, extra) for chat, extra in zip(chats, extras, strict=True)]
