"""Parts of a shaped reward, for the mathematical one and your own: plain functions, added with weights."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
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


def overlong(length: int, max_length: int, buffer: int) -> float:
    """DAPO's soft overlong punishment (arXiv 2503.14476, Eq. 13), in [-1, 0].

    Args:
        length: tokens of the response.
        max_length: L_max, the longest response; from here on -1.
        buffer: L_cache; up to ``max_length - buffer`` tokens nothing is taken off, after it linearly more.
    """
    return max(-1.0, min(0.0, (max_length - buffer - length) / buffer))


def response_length(text: str, extra_info: Mapping[str, Any] | None, tokenizer: str | None) -> int:
    """Tokens of a response: ``extra_info["response_length"]`` where the caller says it, else counted by ``tokenizer``.

    verl decodes a response before it scores it, so a count is one of the text encoded again: without the end-of-turn
    token, and rarely some tokens off.

    Raises:
        ConfigError: neither is known, or the number or tokenizer cannot be used.
    """
    said = (extra_info or {}).get("response_length")
    if said is not None:
        if isinstance(said, bool) or int(said) != said or said < 0:
            raise ConfigError(f"extra_info['response_length']={said!r} is no number of tokens.")
        return int(said)
    if tokenizer is None:
        raise ConfigError(
            "overlong_buffer needs the response's length in tokens, which verl does not pass to a reward function. "
            "Set length_tokenizer to the model's folder (the text is encoded again), or leave overlong_buffer out and "
            "use verl's own: reward.reward_manager.name=dapo with reward.reward_kwargs.overlong_buffer_cfg."
        )
    return len(_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids)


@lru_cache(maxsize=4)
def _tokenizer(path: str) -> Any:
    from tokenizers import Tokenizer

    file = Path(path).expanduser()
    file = file / "tokenizer.json" if file.is_dir() else file
    if not file.is_file():
        raise ConfigError(
            f"length_tokenizer={path}: no such folder with tokenizer.json, and no such file. Download the model first."
        )
    try:
        return Tokenizer.from_file(str(file))
    except Exception as error:
        raise ConfigError(f"length_tokenizer={path}: {file.name} cannot be read ({error}).") from error
