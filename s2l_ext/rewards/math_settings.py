"""Keywords of the mathematical reward (verl's ``reward_kwargs``): read once, checked against each other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, TypeVar

from s2l_ext.config.limits import limited
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError
from s2l_ext.rewards.math_helper import POOL_SIZE
from s2l_ext.rewards.parts import FROM_VERL

MATCH_TYPES = ("latex", "expr")
COMPARISON = ("precision", "strict", "allow_set_relation_comp", "match_types")
OVERLONG = ("overlong_buffer", "overlong_penalty", "length_tokenizer", "max_response_length")


@dataclass(frozen=True)
class Judging:
    """How an answer is found and compared; for the last four see :func:`math_equality.judge`.

    ``extraction`` is ``auto`` (the last mark, else what math-verify finds) or the only place that is read. ``thinking``
    is ``auto`` (what follows the last ``</think>``; all of a response without one) or ``opened`` (the prompt opens the
    thinking, so a response without ``</think>`` has no answer). An answer counts as wrong after ``timeout_s`` CPU
    seconds, by default 20. ``pool_size`` bounds math-verify's child processes in this process.
    """

    extraction: Literal["auto", "boxed", "hashes", "tags", "answer_line", "last_number"] = "auto"
    thinking: Literal["auto", "opened"] = "auto"
    timeout_s: float | None = limited(None, above=0)
    pool_size: int = limited(POOL_SIZE, at_least=1)
    precision: int = limited(6, at_least=0)
    strict: bool = True
    allow_set_relation_comp: bool = False
    match_types: list[str] = field(default_factory=lambda: [*MATCH_TYPES], hash=False)

    def __post_init__(self) -> None:
        if not self.match_types or any(each not in MATCH_TYPES for each in self.match_types):
            raise ConfigError(f"reward_kwargs.match_types={self.match_types!r} must list some of {[*MATCH_TYPES]}.")

    @property
    def comparison(self) -> dict[str, Any]:
        """What differs from math-verify's defaults; empty when nothing does."""
        usual = Judging()
        return {name: getattr(self, name) for name in COMPARISON if getattr(self, name) != getattr(usual, name)}


@dataclass(frozen=True)
class Settings(Judging):
    """And what the score adds up: ``accuracy_weight * acc + format_weight * format_ok``."""

    accuracy_weight: float = 1.0
    format_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.format_weight and self.extraction == "last_number":
            raise ConfigError(
                f"format_weight={self.format_weight} has no effect with extraction=last_number, which asks for no "
                "format. Choose boxed, hashes, tags or auto, or leave format_weight out."
            )
        if not (self.accuracy_weight or self.format_weight):
            raise ConfigError("accuracy_weight and format_weight are both 0: every score would be 0.")


Kind = TypeVar("Kind", bound=Judging)


def parse(kind: type[Kind], given: Mapping[str, Any]) -> Kind:
    """Settings of one kind; what verl passes of its own accord is left aside."""
    for name in sorted(given.keys() & OVERLONG):
        raise ConfigError(
            f"reward_kwargs.{name}: verl's reward.reward_manager.name=dapo takes off the overlong part, with exact "
            "lengths. Set reward.reward_kwargs.overlong_buffer_cfg instead."
        )
    own = {name: value for name, value in given.items() if name not in FROM_VERL}
    return _parsed(kind, json.dumps(own, default=_plain))  # type: ignore[arg-type, return-value]


@lru_cache(maxsize=64)
def _parsed(kind: type[Judging], given: str) -> Judging:
    return parse_block(kind, json.loads(given), "reward_kwargs")


def _plain(value: Any) -> Any:
    """OmegaConf's lists as lists; of other objects their text, which no keyword takes."""
    return list(value) if isinstance(value, Sequence) else repr(value)
