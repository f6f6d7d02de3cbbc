"""Label selectors of ``s2l.placement``: Ray's syntax and meaning, so that nodes can be judged before Ray is asked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.methods.registry import S2LConfig

Selector = Mapping[str, str]
_VALUE = r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_SELECTOR = re.compile(rf"!?{_VALUE}|!?in\({_VALUE}(, ?{_VALUE})*\)")
_KEY = re.compile(rf"({_VALUE}/)?{_VALUE}")


def check_placement(s2l: S2LConfig) -> None:
    """Raise ConfigError for a selector that Ray would not read, or for a role that needs no separate nodes."""
    for name, selector in (("learner", s2l.placement.learner), ("explorer", s2l.placement.explorer)):
        if selector is not None:
            _check_selector(f"s2l.placement.{name}", selector)
    if s2l.placement.explorer is not None and not (s2l.explorer and s2l.explorer.n_gpus):
        raise ConfigError(
            f"s2l.placement.explorer={format_selector(s2l.placement.explorer)}: no explorer of this run has "
            "its own accelerators. Leave it out (null), or set s2l.explorer with source: live."
        )


def _check_selector(key: str, selector: Mapping[str, Any]) -> None:
    if not selector:
        raise ConfigError(f"{key}={{}} selects nothing. Give labels, {{pool: NAME}}, or null to let Ray choose.")
    for name, value in selector.items():
        if not _KEY.fullmatch(str(name)):
            raise ConfigError(f"{key}: {name!r} is not a label of Ray: letters, digits and . _ - between, at most 63.")
        if not isinstance(value, str) or not _SELECTOR.fullmatch(value):
            raise ConfigError(
                f"{key}.{name}={value!r}: not a label selector of Ray. Give a text: value, !value, in(a, b) or "
                "!in(a, b); quote what looks like a number."
            )


def matches(selector: Selector | None, labels: Mapping[str, str]) -> bool:
    """Whether a node with these labels may be used; a label that it lacks differs from every value."""
    return selector is None or all(_matches_one(value, labels.get(key)) for key, value in selector.items())


def _matches_one(wanted: str, label: str | None) -> bool:
    plain = wanted.removeprefix("!")
    values = plain[3:-1].split(",") if plain.startswith("in(") else [plain]
    return (label in [value.strip() for value in values]) != wanted.startswith("!")


def format_selector(selector: Selector | None) -> str:
    """As a recipe or an override has it."""
    return "{" + ", ".join(f"{key}: {value}" for key, value in selector.items()) + "}" if selector else "null"
