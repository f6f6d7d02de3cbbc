"""Reward of the toy world, in the form of verl's ``custom_reward_function``."""

from __future__ import annotations

import re
from typing import Any

BOXED = re.compile(r"\\boxed\{([^{}]*)\}")
THINKING = re.compile(r"<think>(.*?)</think>", re.DOTALL)


def extract_answer(solution: str) -> str | None:
    """The content of the last ``\\boxed{...}``, or None."""
    found = BOXED.findall(solution)
    return found[-1] if found else None


def compute_score(
    data_source: str, solution_str: str, ground_truth: str, extra_info: dict[str, Any] | None = None, **kwargs: Any
) -> dict[str, float]:
    """1 when the last boxed answer equals the ground truth (one digit per chain, joined by commas) to the character,
    else 0: ``score`` and ``acc``. ``careful``: whether the response reasons before it answers.
    """
    solution = str(solution_str or "")
    correct = float(extract_answer(solution) == str(ground_truth))
    thinking = THINKING.search(solution)
    return {"score": correct, "acc": correct, "careful": float(thinking is not None and bool(thinking[1].strip()))}
