"""A curriculum of one's own: the prompts seen least often come first, ties broken at random.

    PYTHONPATH=examples s2l train --config-name expo/toy \\
        's2l.curriculum={type: "rarest_curriculum:Rarest", options: {patience: 2}}'

docs/extending.md explains the five methods.
"""

from typing import Any

import numpy as np


class Rarest:
    """Prompts seen least often first; ``patience`` visits count as one.

    Args:
        num_prompts: prompts in the data set.
        patience: from ``s2l.curriculum.options``.
    """

    def __init__(self, num_prompts: int, patience: int = 1) -> None:
        self.seen = np.zeros(num_prompts, dtype=np.int64)
        self.patience = patience

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """``n`` different positions in the data set. Draw from ``rng``: its state is saved."""
        order = rng.permutation(len(self.seen))
        return order[np.argsort(self.seen[order] // self.patience, kind="stable")[:n]]

    def update(self, indices: np.ndarray, pass_rates: np.ndarray) -> None:
        """After the rollouts: accuracies of the learner's rows. Prompts without such a row are left out."""
        self.seen[indices] += 1

    def metrics(self) -> dict[str, float]:
        """Optional; logged as ``s2l/curriculum/<name>``."""
        return {"visits_min": float(self.seen.min())}

    def state_dict(self) -> dict[str, Any]:
        """Numbers, text, lists, mappings with text keys, numpy arrays."""
        return {"seen": self.seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seen = state["seen"]
