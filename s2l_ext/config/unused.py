"""Keys that were changed and that nothing reads."""

from __future__ import annotations

import dataclasses
from typing import Any

from s2l_ext.errors import ConfigError


def refuse_unused(block: Any, used: set[str], prefix: str) -> None:
    """Raise ConfigError for a key that was changed and that the block's ``type`` does not read."""
    for item in dataclasses.fields(block):
        default = item.default_factory() if callable(item.default_factory) else item.default
        value = getattr(block, item.name)
        if item.name not in used and value != default:
            raise ConfigError(
                f"{prefix}.{item.name}={value} would be ignored with {prefix}.type={block.type}, which reads "
                f"{', '.join(sorted(used - {'type'}))}. Leave it out."
            )
