"""Our actor workers for verl's ``separate_async``, which keeps copies of the weights beside the actor."""

from __future__ import annotations

from verl.experimental.separation.engine_workers import DetachActorWorker

from s2l_ext.methods.distill.worker import DistillActorWorker
from s2l_ext.training.actor_worker import S2LActorWorker


class DetachedActorWorker(S2LActorWorker, DetachActorWorker):
    """The loss of ours, the copies of verl's."""


class DetachedDistillWorker(DistillActorWorker, DetachActorWorker):
    """The divergence to the teacher, and verl's copies."""


DETACHED = {S2LActorWorker: DetachedActorWorker, DistillActorWorker: DetachedDistillWorker}
