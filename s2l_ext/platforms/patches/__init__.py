"""Every place where this package replaces something of verl, vLLM or torch that it can neither configure nor subclass.

``cpu.py`` is imported on a machine without an accelerator only, ``training.py`` in every run. No other file patches;
``tests/contract/test_patches.py`` walks the list.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


@dataclass(frozen=True)
class Patch:
    """One of them: ``apply`` makes the change (its docstring is the reason), ``where`` lists what is replaced,
    ``module:attribute`` each. ``ends_with`` is the test that fails when upstream no longer needs the patch or no longer
    is as it assumes; ``upstream`` is ``owner/repository#number``, None where we know of none.
    """

    apply: Callable[..., Any]
    where: tuple[str, ...]
    ends_with: str
    upstream: str | None

    @property
    def name(self) -> str:
        return self.apply.__name__

    @property
    def reason(self) -> str:
        return " ".join((inspect.getdoc(self.apply) or "").split())

    @property
    def module(self) -> str:
        """The first place's module."""
        return self.where[0].partition(":")[0]


PATCHES: list[Patch] = []


def patch(*where: str, ends_with: str, upstream: str | None = None) -> Callable[[Function], Function]:
    """Enter the decorated function in :data:`PATCHES`. ``ends_with``: ``file.py::test`` of ``tests/contract``."""

    def enter(function: Function) -> Function:
        PATCHES.append(Patch(function, where, ends_with, upstream))
        return function

    return enter
