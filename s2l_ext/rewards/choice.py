"""Is the chosen letter right? The last ``Answer: X`` or ``\\boxed{X}`` of a response is its choice."""

from __future__ import annotations

import re
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.rewards import parts

OPTIONS = 4
CHOICE = re.compile(
    r"(?:\b(?i:answer)[ \t*_]*:|\\boxed[ \t]*\{)"
    r"(?:[ \t*_$({\[]|\\(?:boxed|text|textbf|mathrm|mathbf)[ \t]*\{)*"
    r"([A-Z])(?![\w'])"
)
LETTERS = re.compile(r"[A-Z]+")


def chosen_letter(text: str, options: int = OPTIONS) -> str | None:
    """The letter chosen last, None without one. Letters after the last option are words (``Answer: I think``)."""
    found = [letter for letter in CHOICE.findall(text) if ord(letter) - ord("A") < options]
    return str(found[-1]) if found else None


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: str,
    extra_info: dict[str, Any] | None = None,
    *,
    thinking: str = "auto",
    **kwargs: Any,
) -> dict[str, Any]:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.choice``). The truth is the right letter, several
    where options are equal; ``extra_info["options"]`` is their number, else 4, or as many as the truth needs.

    ``score`` and ``acc`` (1.0 when right), ``format_ok`` (1.0 when a letter was marked), and ``extracted``. A letter in
    the thinking is no choice.
    """
    parts.refuse_keywords(kwargs, "choice", "thinking")
    if not isinstance(ground_truth, str) or not LETTERS.fullmatch(ground_truth):
        raise DataError(f"{data_source}: the ground truth {ground_truth!r} is no letter of an option, such as 'B'.")
    options = (extra_info or {}).get("options") or max(OPTIONS, ord(max(ground_truth)) - ord("A") + 1)
    letter = chosen_letter(parts.said(solution_str, thinking), int(options))
    right = float(letter is not None and letter in ground_truth)
    return {"score": right, "acc": right, "format_ok": float(letter is not None), "extracted": letter or ""}
