"""Keys that were changed and that nothing reads."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from s2l_ext.config.parse import defaults
from s2l_ext.errors import ConfigError


def refuse_changed(block: Any, names: Iterable[str], key: str, why: str) -> None:
    """Raise ConfigError for a key of ``block`` that another of its keys leaves unread, unless it has its default.

    Args:
        names: of the unread keys.
        key: of the block.
        why: the setting that leaves them unread, and the reason.
    """
    default = defaults(type(block))
    for name in names:
        value = getattr(block, name)
        if value != default[name]:
            raise ConfigError(f"{key}.{name}={value} would be ignored with {why}. Leave it out.")
