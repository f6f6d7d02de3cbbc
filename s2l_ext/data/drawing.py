"""A seeded draw of rows, evenly over their tiers, that no order or sharding of the input changes."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

T = TypeVar("T")
LotEntry = tuple[int, int, T]
"""Minus the row's lot, its number in the input, and the row."""


class TierDraw(Generic[T]):
    """Keeps ``rows`` of all that are offered. Tiers get equal shares; what one lacks goes to those that have more.

    Memory: at most ``rows`` rows of each tier.
    """

    def __init__(self, rows: int, seed: int = 0) -> None:
        self._rows, self._seed, self._count = rows, seed, 0
        self._tiers: dict[Hashable, list[LotEntry[T]]] = {}

    def offer(self, tier: Hashable, name: str, row: T) -> None:
        """``name`` (with the seed) decides the row's lot: rows with the smallest are drawn."""
        lot = int(hashlib.sha256(f"{self._seed} {name}".encode()).hexdigest()[:15], 16)
        heap = self._tiers.setdefault(tier, [])
        heapq.heappush(heap, (-lot, self._count, row))
        self._count += 1
        if len(heap) > self._rows:
            heapq.heappop(heap)

    def shares(self) -> dict[Hashable, int]:
        """Rows that each tier gives."""
        shares: dict[Hashable, int] = {}
        left = self._rows
        smallest_first = sorted(self._tiers, key=lambda tier: (len(self._tiers[tier]), str(tier)))
        for position, tier in enumerate(smallest_first):
            shares[tier] = min(len(self._tiers[tier]), left // (len(smallest_first) - position))
            left -= shares[tier]
        return shares

    def drawn(self) -> Iterator[T]:
        """The rows, in the order of the input."""
        kept = [row for tier, share in self.shares().items() for row in heapq.nlargest(share, self._tiers[tier])]
        return (row for _, _, row in sorted(kept, key=lambda each: each[1]))

    @property
    def left_out(self) -> int:
        """Rows that were offered and are not drawn."""
        return self._count - sum(self.shares().values())
