"""Which of a prompt's stored rollouts a step takes: in a seeded order, none twice in a round.

Part of S2L-PO's cheapest form (arXiv 2605.30789, section 3.2: explorer rollouts produced once, reused by many runs).
State kept: for each prompt, how many of its rollouts this run has taken.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from s2l_ext.errors import DataError

OnExhausted = Literal["error", "reuse", "learner"]


@dataclass(frozen=True)
class StoredDraw:
    """Numbers of stored rollouts for one group, ascending; ``num_reused`` of them were taken before in this run."""

    indices: list[int]
    num_reused: int = 0


class StoredRolloutSampler:
    """Draws stored rollouts for groups.

    Args:
        counts: rollouts that the store has of each prompt, by prompt id.
        on_exhausted: when fewer are left than a group wants: ``error``; ``reuse`` starts over with all of them in
            another order; ``learner`` takes those left, and the learner samples the rest.
        seed: of the orders.
    """

    def __init__(self, counts: Mapping[str, int], on_exhausted: OnExhausted = "error", seed: int = 0) -> None:
        self._counts = counts
        self._on_exhausted = on_exhausted
        self._seed = seed
        self._used: dict[str, int] = {}

    def draw(self, prompt_id: str, wanted: int) -> StoredDraw:
        """The next ``wanted`` rollouts of a prompt; fewer only with ``learner``. A group has no rollout twice as long
        as the store has ``wanted`` of them.

        Raises:
            DataError: too few are left (``error``), or the store has none at all (``reuse``).
        """
        have, used = self._counts.get(prompt_id, 0), self._used.get(prompt_id, 0)
        left = max(have - used, 0)
        if left < wanted and self._on_exhausted == "learner":
            wanted = left
        elif left < wanted and (self._on_exhausted == "error" or have == 0):
            raise DataError(
                f"prompt {prompt_id}: the step needs {wanted} stored rollouts, {left} of {have} are left. To go on "
                "from a checkpoint set s2l.explorer.on_exhausted to reuse or learner; a run that starts over may "
                "have more "
                "from `s2l explore --only-missing`."
            )
        if wanted == 0:
            return StoredDraw([])
        start = used if used % have + wanted <= have or wanted > have else _next_round(used, have)
        places = range(start, start + wanted)
        self._used[prompt_id] = places.stop
        chosen = [self._order(prompt_id, have, place // have)[place % have] for place in places]
        return StoredDraw(sorted(chosen), num_reused=sum(place >= have for place in places))

    def _order(self, prompt_id: str, have: int, round_number: int) -> list[int]:
        seed = zlib.crc32(f"{self._seed}/{prompt_id}/{round_number}".encode())
        return [int(number) for number in np.random.default_rng(seed).permutation(have)]

    def state_dict(self) -> dict[str, Any]:
        return {"used": dict(self._used)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        self._used = {str(name): int(count) for name, count in state["used"].items()}


def _next_round(used: int, have: int) -> int:
    return -(-used // have) * have
