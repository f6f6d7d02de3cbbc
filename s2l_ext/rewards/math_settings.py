"""Keywords of the mathematical reward (verl's ``reward_kwargs``): read once, checked against each other."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError
from s2l_ext.rewards.extraction import EXTRACTIONS, THINKING
from s2l_ext.rewards.math_helper import POOL_SIZE
from s2l_ext.rewards.parts import FROM_VERL

MATCH_TYPES = ("latex", "expr")


@dataclass(frozen=True)
class Judging:
    """How an answer is found and compared.

    Attributes:
        extraction: ``auto`` (the last mark, else what math-verify finds), ``boxed``, ``hashes``, ``tags``,
            ``answer_line`` or ``last_number``; one that is named is the only place read.
        thinking: ``auto`` (what follows the last ``</think>``; all of a response without one), or ``opened`` (the
            prompt opens the thinking, so a response without ``</think>`` has no answer).
        timeout_s: CPU seconds of judging after which an answer counts as wrong; None is 20.
        pool_size: child processes of math-verify at most, in this process.
        precision, strict, allow_set_relation_comp, match_types: see :func:`math_child.judge`.
    """

    extraction: str = "auto"
    thinking: str = "auto"
    timeout_s: float | None = None
    pool_size: int = POOL_SIZE
    precision: int = 6
    strict: bool = True
    allow_set_relation_comp: bool = False
    match_types: tuple[str, ...] = MATCH_TYPES

    def __post_init__(self) -> None:
        _choice("extraction", self.extraction, EXTRACTIONS)
        _choice("thinking", self.thinking, THINKING)
        if self.timeout_s is not None:
            _number("timeout_s", self.timeout_s, above=0.0)
        _whole("pool_size", self.pool_size, 1)
        _whole("precision", self.precision, 0)
        for name in ("strict", "allow_set_relation_comp"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"{name}={getattr(self, name)!r} of the math reward must be true or false.")
        if not isinstance(self.match_types, tuple) or not self.match_types:
            raise ConfigError(f"match_types={self.match_types!r} of the math reward must be a list, as [latex, expr].")
        for each in self.match_types:
            _choice("match_types", each, MATCH_TYPES)

    @property
    def comparison(self) -> dict[str, Any]:
        """What differs from math-verify's defaults; empty when nothing does."""
        names = ("precision", "strict", "allow_set_relation_comp", "match_types")
        defaults = {field.name: field.default for field in fields(Judging)}
        return {name: getattr(self, name) for name in names if getattr(self, name) != defaults[name]}


@dataclass(frozen=True)
class Shaping:
    """What the score adds up: ``accuracy_weight * acc + format_weight * format_ok + overlong_penalty * overlong``.

    Attributes:
        overlong_buffer, max_response_length: tokens, as for :func:`parts.overlong`; both or none.
        overlong_penalty: weight of that part; None is 1 where it is on.
        length_tokenizer: folder with ``tokenizer.json`` that counts a response's tokens.
    """

    accuracy_weight: float = 1.0
    format_weight: float = 0.0
    overlong_buffer: int | None = None
    max_response_length: int | None = None
    overlong_penalty: float | None = None
    length_tokenizer: str | None = None

    def __post_init__(self) -> None:
        for name in ("accuracy_weight", "format_weight"):
            _number(name, getattr(self, name))
        if self.overlong_buffer is None:
            self._refuse_overlong_parts()
            if not (self.accuracy_weight or self.format_weight):
                raise ConfigError("accuracy_weight and format_weight are both 0: every score would be 0.")
        else:
            self._check_overlong(self.overlong_buffer)

    def _refuse_overlong_parts(self) -> None:
        for name in ("max_response_length", "overlong_penalty", "length_tokenizer"):
            if getattr(self, name) is not None:
                raise ConfigError(f"{name}={getattr(self, name)!r} has no effect without overlong_buffer. Set both.")

    def _check_overlong(self, buffer: int) -> None:
        if self.max_response_length is None:
            raise ConfigError(
                f"overlong_buffer={buffer} needs max_response_length: set it to data.max_response_length."
            )
        _whole("max_response_length", self.max_response_length, 1)
        _whole("overlong_buffer", buffer, 1)
        if buffer > self.max_response_length:
            raise ConfigError(f"overlong_buffer={buffer} is beyond max_response_length={self.max_response_length}.")
        if self.overlong_penalty is not None:
            _number("overlong_penalty", self.overlong_penalty, above=0.0)
        if self.length_tokenizer is not None and not isinstance(self.length_tokenizer, str):
            raise ConfigError(f"length_tokenizer={self.length_tokenizer!r} of the math reward must be a path.")


JUDGING = tuple(field.name for field in fields(Judging))
SHAPING = tuple(field.name for field in fields(Shaping))


def parse_judging(given: Mapping[str, Any]) -> Judging:
    """Settings of :func:`math.grade`. Raises ConfigError for a keyword that is unknown or out of range."""
    return _parse(_key(given), shaped=False)[0]


def parse_settings(given: Mapping[str, Any]) -> tuple[Judging, Shaping]:
    """Settings of :func:`math.compute_score`; what verl passes of its own accord is left aside.

    Raises:
        ConfigError: a keyword is unknown, out of range, or has no effect together with the others.
    """
    return _parse(_key({name: value for name, value in given.items() if name not in FROM_VERL}), shaped=True)


def _key(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Hashable, and with its types, for 1 and True are equal."""
    plain = {
        name: tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in given.items()
    }
    for name, value in plain.items():
        if not isinstance(value, Hashable) or (isinstance(value, tuple) and not all(isinstance(v, str) for v in value)):
            raise ConfigError(f"{name}={value!r} of the math reward must be one value, or a list of names.")
    return tuple(sorted((name, value, type(value).__name__) for name, value in plain.items()))  # type: ignore[misc]


@lru_cache(maxsize=64)
def _parse(key: tuple[tuple[Any, ...], ...], shaped: bool) -> tuple[Judging, Shaping]:
    given = {name: value for name, value, _ in key}
    known = (*JUDGING, *SHAPING) if shaped else JUDGING
    for name in given:
        if name not in known:
            hint = did_you_mean(name, known) or f" Known: {', '.join(known)}."
            raise ConfigError(f"unknown keyword {name}={given[name]!r} of the math reward.{hint}")
    judging = Judging(**{name: given[name] for name in JUDGING if name in given})
    shaping = Shaping(**{name: given[name] for name in SHAPING if name in given})
    if shaping.format_weight and judging.extraction == "last_number":
        raise ConfigError(
            f"format_weight={shaping.format_weight} has no effect with extraction=last_number, which asks "
            "for no format. Choose boxed, hashes, tags or auto, or leave format_weight out."
        )
    return judging, shaping


def _choice(name: str, value: Any, known: Sequence[str]) -> None:
    if value not in known:
        raise ConfigError(f"{name}={value!r} of the math reward must be one of {', '.join(known)}.")


def _whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"{name}={value!r} of the math reward must be a whole number from {least} on.")


def _number(name: str, value: Any, above: float = -math.inf) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not (above < value < math.inf):
        wanted = "a number" if above == -math.inf else f"a number above {above:g}"
        raise ConfigError(f"{name}={value!r} of the math reward must be {wanted}.")
