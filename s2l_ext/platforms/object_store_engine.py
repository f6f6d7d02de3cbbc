"""Checkpoint engine ``s2l_cpu``: new weights from the learner to rollout servers in other processes, without a GPU.

verl 0.9.1's engines need NCCL, HCCL, RDMA or their libraries. This one goes through Ray's object store: no socket of
its own, any node of the cluster. Rank 0 sends, every rollout worker reads everything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from typing import Any, ClassVar

import ray
import torch
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from s2l_ext.config.modes import CPU_ENGINE
from s2l_ext.platforms.weight_box import new_box

Weights = list[tuple[str, torch.Tensor]]


def buckets(weights: Iterable[tuple[str, torch.Tensor]], size: int) -> Iterator[Weights]:
    """Whole tensors in groups of at most ``size`` bytes; a larger tensor is a group of its own."""
    group: Weights = []
    held = 0
    for name, tensor in weights:
        if group and held + tensor.nbytes > size:
            yield group
            group, held = [], 0
        group.append((name, tensor.detach().cpu()))
        held += tensor.nbytes
    if group:
        yield group


@CheckpointEngineRegistry.register(CPU_ENGINE)
class ObjectStoreEngine(CheckpointEngine):
    """One end of an update. ``bucket_size``: bytes that travel at a time. ``is_master``: whether this process is the
    learner's rank 0."""

    boxes: ClassVar[dict[int, Any]] = {}
    """By number of receivers; an update leaves its box empty."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.bucket_size, self.is_master = bucket_size, is_master
        self.box: Any = None

    def prepare(self) -> None:
        """Nothing to allocate."""

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """The same box for everybody. This runs on the driver, which keeps it: a new one takes a second to start."""
        if rollout_world_size not in cls.boxes:
            cls.boxes[rollout_world_size] = new_box(rollout_world_size)
        box = cls.boxes[rollout_world_size]
        return {"box": [box] * actor_wg_world_size}, {"box": [box] * rollout_world_size}

    def init_process_group(self, box: Any) -> None:
        self.box = box

    def finalize(self) -> None:
        self.box = None

    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> None:
        if not self.is_master:  # taking a weight is a collective operation of all learners
            for _ in weights:
                pass
            return
        number = 0
        for number, bucket in enumerate(buckets(weights, self.bucket_size), start=1):
            await self.box.put.remote(number, [ray.put(bucket)])
        await self.box.put.remote(number + 1, [])

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        number = 1
        while bucket := await self.box.take.remote(number):
            for name, tensor in await bucket[0]:
                yield name, tensor
            number += 1
