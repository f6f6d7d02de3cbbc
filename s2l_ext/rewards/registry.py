"""Names of reward functions: built in, brought by an installed package (entry-point group ``s2l.rewards``), or a place.

A place is ``package.module:function``, ``pkg://package.module`` or ``path/to/file.py:function``; without a function it
is ``compute_score``. :func:`compute_score` lets verl use a name.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError

GROUP = "s2l.rewards"
FUNCTION = "compute_score"
NAMES = ("math", "code", "choice", "quantity", "livecodebench", "toy")
BUILT_IN = {name: f"s2l_ext.rewards.{name}:{FUNCTION}" for name in NAMES}
FORMS = "package.module:function or path/to/file.py:function"

Reward = Callable[..., Any]


def rewards() -> dict[str, str]:
    """Every name, and the ``package.module:function`` behind it. ConfigError for a name that is there twice."""
    found = dict(BUILT_IN)
    for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, point.value)):
        if found.get(point.name, point.value) != point.value:
            package = f"package {point.dist.name}" if point.dist else "an installed package"
            raise ConfigError(
                f"reward '{point.name}' of {package} (entry point {point.value}) is already the name of "
                f'{found[point.name]}. Rename it under [project.entry-points."{GROUP}"] there, or uninstall it.'
            )
        found[point.name] = point.value
    return found


def load(name: str) -> Reward:
    """The reward function called ``name``, or found at that place."""
    module, function = _located(name)
    if not module:
        raise ConfigError(f"reward '{name}' is neither a name ({', '.join(rewards())}) nor {FORMS}.")
    if not function:
        raise ConfigError(
            f"unknown reward '{name}'.{did_you_mean(name, rewards())} Known: {', '.join(rewards())}; or give {FORMS}."
        )
    return _function(name, _module(name, module), function)


def place_of(name: str) -> str:
    """The one spelling of a reward, however it was named: ``package.module:function`` or ``file.py:function``.

    A name that is not registered stays as it is; ``compute_score_async`` gives the verdicts of ``compute_score``.
    """
    module, function = _located(name)
    return f"{module}:{function.removesuffix('_async')}" if function else module


def _located(name: str) -> tuple[str, str]:
    """Module (or file) and function of a name or a place; a name that is not registered has no function."""
    place = name.removeprefix("pkg://").removeprefix("file://")
    if place and not any(mark in place for mark in ":./"):
        place = rewards().get(place, "")
        if not place:
            return name, ""
    module, _, function = place.rpartition(":") if ":" in place else (place, "", "")
    return (module if module.endswith(".py") else module.replace("/", ".")), function or FUNCTION


def _module(name: str, module: str) -> Any:
    if module.endswith(".py"):
        return _from_file(name, Path(module).expanduser().resolve())
    try:
        return importlib.import_module(module)
    except Exception as error:
        raise ConfigError(
            f"reward '{name}' cannot be loaded ({type(error).__name__}: {error}). Expected {FORMS}."
        ) from error


@lru_cache(maxsize=32)
def _from_file(name: str, path: Path) -> Any:
    unique = hashlib.sha256(str(path).encode()).hexdigest()[:12]
    spec = importlib.util.spec_from_file_location(f"s2l_reward_{unique}", path)
    if not path.is_file() or spec is None or spec.loader is None:
        raise ConfigError(f"reward '{name}': no file {path}. A relative path starts at the current folder.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[spec.name]
        raise ConfigError(f"reward '{name}': {path} cannot be run ({type(error).__name__}: {error}).") from error
    return module


def _function(name: str, module: Any, function: str) -> Reward:
    found = module
    for part in function.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise ConfigError(f"reward '{name}': {getattr(module, '__file__', module)} has no function '{function}'.")
    if not callable(found):
        raise ConfigError(f"reward '{name}': {function} is {type(found).__name__}, no function.")
    return found  # type: ignore[no-any-return]


@lru_cache(maxsize=32)
def synchronous(name: str) -> Reward:
    """:func:`load`, for a caller that cannot await. Raises ConfigError for a coroutine function too."""
    found = load(name)
    if inspect.iscoroutinefunction(found):
        raise ConfigError(
            f"reward '{name}' is a coroutine function, which this call cannot await. Name it to verl itself "
            "(custom_reward_function.path and .name)."
        )
    return found


def named(reward: object) -> Reward:
    """The function behind ``reward`` of ``reward_kwargs``. Raises ConfigError when it names none."""
    if not isinstance(reward, str) or not reward:
        raise ConfigError(
            f"reward={reward!r} in custom_reward_function.reward_kwargs must be a name: {', '.join(rewards())}."
        )
    return synchronous(reward)


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict[str, Any] | None = None,
    *,
    reward: str | None = None,
    **kwargs: Any,
) -> Any:
    """verl's ``custom_reward_function`` (path ``pkg://s2l_ext.rewards.registry``) for the reward that ``reward_kwargs``
    names in ``reward``; the other keywords are passed to it.
    """
    return named(reward)(
        data_source=data_source, solution_str=solution_str, ground_truth=ground_truth, extra_info=extra_info, **kwargs
    )
