"""Ranges of numbers in a block of settings."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, field
from typing import Any


@dataclass(frozen=True)
class Limits:
    """Allowed range of a number; None leaves a side open."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None

    def describe(self) -> str:
        sides = ((">=", self.at_least), (">", self.above), ("<=", self.at_most), ("<", self.below))
        return " and ".join(f"{sign} {bound:g}" for sign, bound in sides if bound is not None)

    def allow(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def limited(default: Any = MISSING, what: str | None = None, **limits: float) -> Any:
    """A dataclass field with a range: any of the names of :class:`Limits`. Without a default ``what`` ends the message
    where it is missing."""
    return field(default=default, metadata={"limits": Limits(**limits), "what": what})
