"""The step's stored explorer rollouts: which ones each group takes, sent to the workers as numbers."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import DataError
from s2l_ext.training.batch_fields import STORED_FIELD

if TYPE_CHECKING:
    from s2l_ext.training.pending_prompts import Draw, PromptPlan


class StoredDraw(NamedTuple):
    """Numbers of stored rollouts for one group, ascending; ``num_reused`` of them were taken before in this run."""

    indices: list[int]
    num_reused: int = 0


class StoredRollouts:
    """``G_w`` stored rollouts for every group of a step, of ``counts`` by prompt id. When fewer are left than a group
    wants, ``on_exhausted`` decides: ``error``; ``reuse`` starts over with all of them in another order; ``learner``
    takes those left, and the learner samples the rest. ``seed`` is of the orders."""

    def __init__(self, counts: Mapping[str, int], on_exhausted: str = "error", seed: int = 0) -> None:
        self._counts, self._on_exhausted, self._seed = counts, on_exhausted, seed
        self._used: dict[str, int] = {}

    def draw(self, draw: Draw) -> None:
        """Take ``draw.slots`` rollouts for every prompt, and send their numbers with its row."""
        batch = draw.batch
        chats = [[dict(message) for message in chat] for chat in batch["raw_prompt"]]
        extras = list(batch["extra_info"]) if "extra_info" in batch else [None] * len(batch)
        taken = [self.take(prompt_id(*row), draw.slots) for row in zip(chats, extras, strict=True)]
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

    def take(self, prompt_id: str, wanted: int) -> StoredDraw:
        """The next ``wanted`` rollouts of a prompt; fewer only with ``learner``. A group has no rollout twice as long
        as the store has ``wanted`` of them. Raises DataError: too few are left (``error``), or the store has none at
        all (``reuse``)."""
        have, used = self._counts.get(prompt_id, 0), self._used.get(prompt_id, 0)
        left = max(have - used, 0)
        if left < wanted and self._on_exhausted == "learner":
            wanted = left
        elif left < wanted and (self._on_exhausted == "error" or have == 0):
            raise DataError(
                f"prompt {prompt_id}: the step needs {wanted} stored rollouts, {left} of {have} are left. To go on "
                "from a checkpoint set s2l.explorer.on_exhausted to reuse or learner; a run that starts over may have "
                "more from `s2l explore --only-missing`."
            )
        if wanted == 0:
            return StoredDraw([])
        start = used if used % have + wanted <= have or wanted > have else -(-used // have) * have
        places = range(start, start + wanted)
        self._used[prompt_id] = places.stop
        rounds = range(start // have, (places.stop - 1) // have + 1)
        order = {number: self._order(prompt_id, have, number) for number in rounds}
        chosen = [order[place // have][place % have] for place in places]
        return StoredDraw(sorted(chosen), num_reused=sum(place >= have for place in places))

    def _order(self, prompt_id: str, have: int, round_number: int) -> list[int]:
        seed = zlib.crc32(f"{self._seed}/{prompt_id}/{round_number}".encode())
        return [int(number) for number in np.random.default_rng(seed).permutation(have)]

    def state_dict(self) -> dict[str, Any]:
        return {"used": dict(self._used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._used = {str(name): int(count) for name, count in state["used"].items()}
