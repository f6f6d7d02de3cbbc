"""May Ray's choice of nodes leave a later role without a place? Ray knows nothing of who comes later, and packs a
placement group onto any one node that has room."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

MOST_STATES = 500
"""Kept of the ways to fill a cluster's nodes. Beyond that some are not looked at; what is found still can happen."""

Groups = tuple[int, ...]
"""So many of every claim."""


class Full(NamedTuple):
    """A node without room for the last claim, what it holds, and those that were filled before."""

    before: Full | None
    node: int
    held: Groups


@dataclass(frozen=True)
class Claim:
    """``groups`` times ``size`` accelerators, each time on one of ``nodes`` (their numbers)."""

    groups: int
    size: int
    nodes: frozenset[int]

    def fits(self, room: Sequence[int], nodes: frozenset[int]) -> bool:
        """Whether these nodes alone have all its places, while nobody else is there."""
        return sum(room[node] // self.size for node in nodes) >= self.groups


def shut_out(claims: Sequence[Claim], room: Sequence[int]) -> dict[int, Groups] | None:
    """What nodes may hold so that the last claim's last group has no place; None if that cannot be.

    A node is closed to a group of ``size`` once fewer accelerators are left. Earlier claims, and all but one group of
    the last, are what can close it; how many of them are spent is followed from node to node.

    Args:
        claims: in the order in which they are placed.
        room: accelerators of each node.

    Returns:
        Groups of every claim by node, for the nodes that must be closed.
    """
    last, sizes = claims[-1], tuple(claim.size for claim in claims)
    limits = (*(claim.groups for claim in claims[:-1]), last.groups - 1)
    nodes = sorted(node for node in last.nodes if room[node] >= last.size)
    to_take = sum(room[node] - last.size + 1 for node in nodes)
    found: dict[Groups, Full | None] = {(0,) * len(claims): None}
    for node in nodes:
        ways = _closing(tuple(c.size if node in c.nodes else 0 for c in claims), limits, room[node])
        to_take -= room[node] - last.size + 1
        found = _least(_closed_too(found, node, ways, limits, sizes, to_take), sizes)
    return _by_node(next(iter(found.values()))) if found else None


def _closed_too(
    found: dict[Groups, Full | None], node: int, ways: Sequence[Groups], limits: Groups, sizes: Groups, to_take: int
) -> dict[Groups, Full | None]:
    """Every state with every way to close one more node, if what is left may do for the others."""
    more: dict[Groups, Full | None] = {}
    for spent, before in found.items():
        for held in ways:
            total = tuple(map(int.__add__, spent, held))
            left = tuple(map(int.__sub__, limits, total))
            if total not in more and min(left) >= 0 and _accelerators(left, sizes) >= to_take:
                more[total] = Full(before, node, held)
    return more


def _accelerators(groups: Groups, sizes: Groups) -> int:
    return sum(map(int.__mul__, groups, sizes))


def _least(found: dict[Groups, Full | None], sizes: Groups) -> dict[Groups, Full | None]:
    """The states that took the fewest accelerators, if there are too many."""
    if len(found) <= MOST_STATES:
        return found
    kept = heapq.nsmallest(MOST_STATES, found, key=lambda spent: _accelerators(spent, sizes))
    return {spent: found[spent] for spent in kept}


def _by_node(full: Full | None) -> dict[int, Groups]:
    held = {}
    while full:
        held[full.node] = full.held
        full = full.before
    return dict(sorted(held.items()))


@cache
def _closing(sizes: Groups, limits: Groups, room: int) -> list[Groups]:
    """How groups of these sizes (0: not on this node) can leave less than the last size, none of them needlessly."""
    least = room - sizes[-1] + 1
    counts = [
        range(min(limit, room // size) + 1) if size else range(1) for size, limit in zip(sizes, limits, strict=True)
    ]
    ways = []
    for held in itertools.product(*counts):
        taken = _accelerators(held, sizes)
        smallest = min((size for n, size in zip(held, sizes, strict=True) if n), default=0)
        if taken - smallest < least <= taken <= room:
            ways.append(held)
    return ways


def always_fits(claims: Sequence[Claim], room: Sequence[int]) -> bool:
    """Whether every claim finds its places, whichever nodes Ray chooses."""
    return all(shut_out(claims[: number + 1], room) is None for number in range(len(claims)))
