"""Parts of a shaped reward, for the mathematical one and your own: plain functions, added with weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.rewards.extraction import outside_thinking

FROM_VERL = frozenset(("reward_router_address", "reward_model_tokenizer"))
"""What verl's reward managers pass besides the four arguments, when a reward model is served."""


def refuse_keywords(given: Mapping[str, Any], reward: str, known: str = "none") -> None:
    """Raise ConfigError for a keyword (verl's ``reward_kwargs``) that ``reward`` would ignore."""
    unknown = sorted(given.keys() - FROM_VERL)
    if unknown:
        raise ConfigError(f"unknown keyword {unknown[0]}={given[unknown[0]]!r} of the {reward} reward. Known: {known}.")


def said(text: object, thinking: str) -> str:
    """What a response says beside its thinking. Raises ConfigError unless ``thinking`` is ``auto`` or ``opened``."""
    if thinking not in ("auto", "opened"):
        raise ConfigError(f"thinking={thinking!r} must be auto, or opened where the prompt opens the thinking.")
    return outside_thinking(str(text or ""), thinking == "opened")


def weighted_sum(parts: Mapping[str, tuple[float, float]]) -> float:
    """``sum(weight * value)`` over ``{name: (weight, value)}``."""
    return float(sum(weight * value for weight, value in parts.values()))
