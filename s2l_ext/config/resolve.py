"""Classes and functions that users bring: ``pkg.module:Name``, or the name of an entry point."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError


def resolve(value: str, key: str, builtin: tuple[str, ...], group: str | None = None) -> Any:
    """Import what ``key=value`` names: ``pkg.module:Name``, or the name of an entry point in ``group``, if there is
    one. ``builtin`` are names that need no import, for suggestions. Raises ConfigError: nothing of that name, or its
    module fails to import."""
    if ":" in value:
        return _import(value, key)
    points = {point.name: point for point in entry_points(group=group)} if group else {}
    if value in points:
        return _import(points[value].value, key)
    names = [*builtin, *points]
    also = f" or an entry point of the group {group}" if group else ""
    raise ConfigError(
        f"{key}={value!r} is not a choice. Choose from: {', '.join(names)}; or name your own as pkg.module:Name{also}."
        f"{did_you_mean(value, names)}"
    )


def _import(reference: str, key: str) -> Any:
    module_name, _, name = reference.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise ConfigError(
            f"{key}={reference}: module {module_name} cannot be imported ({type(error).__name__}: {error}). "
            "Install it, or put its folder on PYTHONPATH."
        ) from error
    if not hasattr(module, name):
        public = [attribute for attribute in vars(module) if not attribute.startswith("_")]
        raise ConfigError(f"{key}={reference}: module {module_name} has no {name}.{did_you_mean(name, public)}")
    return getattr(module, name)
