"""A post box for weights: a small Ray actor that hands references to buckets from one sender to all receivers.

Imports nothing of verl, so that its process starts quickly. The weights stay in Ray's object store.
"""

from __future__ import annotations

import asyncio
from typing import Any

import ray


class WeightBox:
    """Buckets of one update after another, by number; each is kept until every receiver has taken it. ``receivers``:
    processes that read each bucket."""

    def __init__(self, receivers: int) -> None:
        self._receivers = receivers
        self._changed = asyncio.Condition()
        self._buckets: dict[int, list[Any]] = {}
        self._takes: dict[int, int] = {}

    async def put(self, number: int, bucket: list[Any]) -> None:
        """Store a reference in a list (Ray would fetch a bare one); an empty list ends the update. Returns when all
        receivers have taken the bucket before it, so that at most two are held."""
        async with self._changed:
            self._buckets[number], self._takes[number] = bucket, 0
            self._changed.notify_all()
            await self._changed.wait_for(lambda: number - 1 not in self._buckets)

    async def take(self, number: int) -> list[Any]:
        """Bucket ``number``, as soon as it is there."""
        async with self._changed:
            await self._changed.wait_for(lambda: number in self._buckets)
            bucket = self._buckets[number]
            self._takes[number] += 1
            if self._takes[number] == self._receivers:
                del self._buckets[number]
                self._changed.notify_all()
            return bucket


def new_box(receivers: int) -> Any:
    """A handle; the actor ends when no process holds one. It reserves nothing."""
    return ray.remote(WeightBox).options(num_cpus=0, max_concurrency=1000).remote(receivers)
