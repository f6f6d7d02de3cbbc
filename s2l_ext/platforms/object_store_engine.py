"""Checkpoint engine ``s2l_cpu``: new weights from the learner to rollout servers in other processes, without a GPU.

verl 0.9.1's engines need NCCL, HCCL, RDMA or their libraries. This one goes through Ray's object store: no socket of
its own, any node of the cluster. Rank 0 sends, every rollout worker reads everything.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from itertools import chain
from typing import Any, ClassVar

import ray
import torch
from ray.util.queue import Queue
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry

from s2l_ext.config.modes import CPU_ENGINE

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

    boxes: ClassVar[dict[int, list[Queue]]] = {}
    """By number of receivers, a queue for each; an update leaves them empty."""

    def __init__(self, bucket_size: int, is_master: bool = False) -> None:
        self.bucket_size, self.is_master = bucket_size, is_master
        self.box: list[Queue] = []

    def prepare(self) -> None:
        """Nothing to allocate."""

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[Any]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """All queues for the learner, its own for each receiver. This runs on the driver, which keeps them: new ones
        take a second to start."""
        if rollout_world_size not in cls.boxes:
            cls.boxes[rollout_world_size] = [Queue(1, {"num_cpus": 0}) for _ in range(rollout_world_size)]
        queues = cls.boxes[rollout_world_size]
        return {"box": [queues] * actor_wg_world_size}, {"box": [[queue] for queue in queues]}

    def init_process_group(self, box: list[Queue]) -> None:
        self.box = box

    def finalize(self) -> None:
        self.box = []

    async def send_weights(
        self, weights: Generator[tuple[str, torch.Tensor], None, None], global_steps: int | None = None
    ) -> None:
        if not self.is_master:  # taking a weight is a collective operation of all learners
            for _ in weights:
                pass
            return
        # references in a list, as Ray would fetch bare ones; an empty list ends the update
        for bucket in chain(([ray.put(group)] for group in buckets(weights, self.bucket_size)), [[]]):
            for queue in self.box:
                await queue.put_async(bucket)

    async def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        while bucket := await self.box[0].get_async():
            for name, tensor in await bucket[0]:
                yield name, tensor
