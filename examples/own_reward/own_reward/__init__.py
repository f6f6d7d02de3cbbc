"""A number with its unit: the number counts, the right unit earns a little more."""

from __future__ import annotations

from typing import Any

from s2l_ext.rewards.math import grade, marked_answer
from s2l_ext.rewards.parts import weighted_sum


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    unit_weight: float = 0.2,
    **from_verl: Any,
) -> dict[str, Any]:
    """Score ``\\boxed{12 cm}`` against ``12 cm``.

    Args:
        unit_weight: what the right unit adds to the 1.0 for the right number.
        from_verl: verl adds keywords of its own when it serves a reward model.
    """
    number, _, unit = ground_truth.partition(" ")
    answer = marked_answer(solution_str) or ""
    right, unit_right = grade(answer.removesuffix(unit).strip(), number), answer.endswith(unit)
    score = weighted_sum({"number": (1.0, right), "unit": (unit_weight, right and unit_right)})
    return {"score": score, "acc": float(right), "format_ok": float(bool(answer)), "extracted": answer}
