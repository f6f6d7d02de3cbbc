"""The places where verl 0.9.1 assumes an accelerator and offers no setting.

Each function receives a module right after its first import, changes one name in it and says why.
``tests/contract/test_platform_seams.py`` fails when upstream no longer needs one of them.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from types import ModuleType
from typing import Any


def use_plain_gloo(distributed: ModuleType) -> None:
    """verl asks torch for "cpu:gloo,<device>:<backend>"; on CPU that names cpu twice and torch refuses."""
    original = distributed.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second: float | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "gloo")

    distributed.initialize_global_process_group_ray = initialize


def register_fsdp_engines(transformer_impl: ModuleType) -> None:
    """FSDP engines are registered for cuda and npu only; the same classes work on CPU."""
    from verl.workers.engine.base import EngineRegistry

    backends = ["fsdp", "fsdp2"]
    EngineRegistry.register("language_model", backends, device="cpu")(transformer_impl.FSDPEngineWithLMHead)
    EngineRegistry.register("value_model", backends, device="cpu")(transformer_impl.FSDPEngineWithValueHead)
    _never_pin_memory(transformer_impl)
    _let_fsdp1_broadcast_on_cpu()
    _leave_fsdp1_where_it_is(transformer_impl)


def _let_fsdp1_broadcast_on_cpu() -> None:
    """verl sets ``sync_module_states`` with ``strategy: fsdp``. FSDP1 refuses it for tensors on the CPU, which NCCL
    could not send; gloo can."""
    from torch.distributed.fsdp import _init_utils

    _init_utils._check_module_states_for_sync_module_states = lambda module_states: None


def _never_pin_memory(transformer_impl: ModuleType) -> None:
    """The forward-only reference is offloaded to pinned memory (FSDP2's ``CPUOffloadPolicy``, FSDP1's ``CPUOffload``);
    pinning needs an accelerator."""

    class UnpinnedOffloadPolicy(transformer_impl.CPUOffloadPolicy):  # type: ignore[name-defined, misc]
        def __init__(self, pin_memory: bool = True) -> None:
            super().__init__(pin_memory=False)

    class UnpinnedFSDP(transformer_impl.FSDP):  # type: ignore[name-defined, misc]
        def __init__(self, *args: Any, cpu_offload: Any = None, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    transformer_impl.CPUOffloadPolicy = UnpinnedOffloadPolicy
    transformer_impl.FSDP = UnpinnedFSDP


def _leave_fsdp1_where_it_is(transformer_impl: ModuleType) -> None:
    """verl moves FSDP1's weights to "<device>:<id>" before it hands them out. Our id is "cpu", where they are."""
    original, version = transformer_impl.load_fsdp_model_to_gpu, transformer_impl.fsdp_version

    def load(model: Any) -> None:
        if version(model) != 1:
            original(model)

    transformer_impl.load_fsdp_model_to_gpu = load


def copy_received_weights(transfer: ModuleType) -> None:
    """The receiver hands out views of the shared buffer; on CPU ``.to(device)`` does not copy, so closing it fails."""

    class CopyingReceiver(transfer.BucketedWeightReceiver):  # type: ignore[name-defined, misc]
        def receive_weights(self, on_bucket_received: Any) -> None:
            def forward(weights: list[tuple[str, Any]], is_last: bool) -> None:
                on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

            super().receive_weights(forward)

    transfer.BucketedWeightReceiver = CopyingReceiver


def name_sockets_by_cluster(transfer: ModuleType) -> None:
    """verl names them by Ray's job id, 01000000 in every cluster that a run starts for itself: two runs on one machine
    would read each other's weights."""

    def named(original: Callable) -> Callable:
        @functools.wraps(original)
        def initialize(self: Any, zmq_handle: str, *args: Any, **kwargs: Any) -> None:
            original(self, f"{zmq_handle}.{os.environ.get('RAY_RAYLET_PID', '')}", *args, **kwargs)

        return initialize

    for end in (transfer.BucketedWeightSender, transfer.BucketedWeightReceiver):
        end.__init__ = named(end.__init__)


def fit_weight_transfer(transfer: ModuleType) -> None:
    """Both of what this module needs."""
    copy_received_weights(transfer)
    name_sockets_by_cluster(transfer)


PATCHES = {
    "verl.utils.distributed": use_plain_gloo,
    "verl.workers.engine.fsdp.transformer_impl": register_fsdp_engines,
    "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer": fit_weight_transfer,
}
