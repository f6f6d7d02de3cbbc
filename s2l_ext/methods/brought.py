"""Methods that installed packages bring: entry points of the group ``s2l.methods``, checked before a run."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.methods.base import Method

GROUP = "s2l.methods"
HOOKS = {name: member for name, member in vars(Method).items() if inspect.isfunction(member) and name != "__init__"}


@functools.cache
def own_methods(taken: frozenset[str]) -> dict[str, type[Method]]:
    """Classes by block, in the order of their names. ``taken``: block names that this package uses. Raises ConfigError:
    one that cannot be imported, is no method, has a block name that is taken, or a hook with other arguments."""
    points = sorted(entry_points(group=GROUP), key=lambda point: point.name)
    names = [point.name for point in points]
    return {point.name: _checked(point, point.name in taken or names.count(point.name) > 1) for point in points}


def _checked(point: EntryPoint, is_taken: bool) -> type[Method]:
    where = f"entry point {point.name} = {point.value} of the group {GROUP}"
    if is_taken:
        raise ConfigError(f"{where}: the block s2l.{point.name} is taken. Give the method another name.")
    try:
        kind: Any = point.load()
    except Exception as error:
        raise ConfigError(
            f"{where}: it cannot be imported ({type(error).__name__}: {error}). Install it anew, or uninstall it."
        ) from error
    if not (inspect.isclass(kind) and issubclass(kind, Method)):
        raise ConfigError(f"{where}: it is no class of s2l_ext.methods.base.Method. Make it a subclass.")
    _check_class(kind, point.name)
    return kind


def _check_class(kind: type[Method], name: str) -> None:
    place = f"{kind.__name__} in {inspect.getsourcefile(kind)}"
    if getattr(kind, "block", None) != name:
        found = getattr(kind, "block", None)
        raise ConfigError(f"{place}: block is {found!r}, the entry point's name is {name!r}. Set both alike.")
    config = getattr(kind, "config_class", None)
    if not (inspect.isclass(config) and dataclasses.is_dataclass(config)):
        raise ConfigError(f"{place}: config_class is {config!r}. Set it to a dataclass with the block's keys.")
    for hook, member in HOOKS.items():
        _check_hook(place, hook, member, getattr(kind, hook))


def _check_hook(place: str, hook: str, ours: Any, theirs: Any) -> None:
    wanted, given = (list(inspect.signature(inspect.unwrap(one)).parameters) for one in (ours, theirs))
    if given != wanted:
        raise ConfigError(
            f"{place}: {hook}({', '.join(given)}) is called as {hook}({', '.join(wanted)}). Give it these arguments."
        )


def checked_value(method: Method, hook: str, value: Any, kinds: type | tuple[type, ...]) -> Any:
    """What a hook returned. Raises ConfigError: a value of another type."""
    if isinstance(value, kinds):
        return value
    names = " or ".join(kind.__name__ for kind in (kinds if isinstance(kinds, tuple) else (kinds,)))
    place = f"{type(method).__name__} in {inspect.getsourcefile(type(method))}"
    raise ConfigError(f"{place}: {hook} returned {type(value).__name__}. It must return {names}.")
