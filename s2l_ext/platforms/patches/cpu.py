"""Patches for a machine without an accelerator: where verl 0.9.1, torch and vLLM assume one and offer no setting.

Each function receives a module right after its first import and changes one name in it.
"""

from __future__ import annotations

import functools
import os
from types import ModuleType
from typing import Any

import wrapt

from s2l_ext.platforms.patches import PATCHES, patch

ENGINE = "verl.workers.engine.fsdp.transformer_impl"
TRANSFER = "verl.workers.rollout.vllm_rollout.bucketed_weight_transfer"


def hook(*packages: str) -> None:
    """Have this file's patches of these packages applied to modules that are imported from now on."""
    for each in PATCHES:
        if each.apply.__module__ == __name__ and each.module.partition(".")[0] in packages:
            wrapt.register_post_import_hook(each.apply, each.module)


@patch(
    "verl.utils.distributed:initialize_global_process_group_ray",
    ends_with="test_platform_seams.py::test_torch_still_refuses_the_duplicate_backend_string_verl_builds",
    upstream="verl-project/verl#3405",
)
def use_plain_gloo(distributed: ModuleType) -> None:
    """verl asks torch for "cpu:gloo,<device>:<backend>"; on CPU that names cpu twice and torch refuses."""
    original = distributed.initialize_global_process_group_ray

    @functools.wraps(original)
    def initialize(timeout_second: float | None = None, backend: str | None = None) -> Any:
        return original(timeout_second=timeout_second, backend=backend or "gloo")

    distributed.initialize_global_process_group_ray = initialize


@patch(
    f"{ENGINE}:FSDPEngineWithLMHead",
    f"{ENGINE}:FSDPEngineWithValueHead",
    ends_with="test_platform_seams.py::test_upstream_still_has_no_cpu_engine",
    upstream="verl-project/verl#3405",
)
def register_fsdp_engines(transformer_impl: ModuleType) -> None:
    """FSDP engines are registered for cuda and npu only; the same classes work on CPU."""
    from verl.workers.engine.base import EngineRegistry

    backends = ["fsdp", "fsdp2"]
    EngineRegistry.register("language_model", backends, device="cpu")(transformer_impl.FSDPEngineWithLMHead)
    EngineRegistry.register("value_model", backends, device="cpu")(transformer_impl.FSDPEngineWithValueHead)


@patch(
    "torch.distributed.fsdp._init_utils:_check_module_states_for_sync_module_states",
    ends_with="test_platform_seams.py::test_fsdp1_still_refuses_to_broadcast_from_the_cpu_and_verl_still_asks_it_to",
)
def let_fsdp1_broadcast(init_utils: ModuleType) -> None:
    """verl sets ``sync_module_states`` with ``strategy: fsdp``. FSDP1 refuses it for tensors on the CPU, which NCCL
    could not send; gloo can."""
    init_utils._check_module_states_for_sync_module_states = lambda module_states: None


@patch(
    f"{ENGINE}:CPUOffloadPolicy",
    f"{ENGINE}:FSDP",
    ends_with="test_platform_seams.py::test_upstream_still_asks_for_pinned_memory",
)
def never_pin_memory(transformer_impl: ModuleType) -> None:
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


@patch(
    f"{ENGINE}:load_fsdp_model_to_gpu",
    ends_with="test_platform_seams.py::test_verl_still_moves_fsdp1_to_a_numbered_device",
)
def leave_fsdp1_where_it_is(transformer_impl: ModuleType) -> None:
    """verl moves FSDP1's weights to "<device>:<id>" before it hands them out. Our id is "cpu", where they are."""
    original, version = transformer_impl.load_fsdp_model_to_gpu, transformer_impl.fsdp_version

    def load(model: Any) -> None:
        if version(model) != 1:
            original(model)

    transformer_impl.load_fsdp_model_to_gpu = load


@patch(
    f"{TRANSFER}:BucketedWeightReceiver",
    ends_with="test_platform_seams.py::test_received_weights_would_be_views_of_the_buffer",
)
def copy_received_weights(transfer: ModuleType) -> None:
    """The receiver returns views of the shared buffer; on CPU ``.to(device)`` does not copy, so closing it fails."""

    class CopyingReceiver(transfer.BucketedWeightReceiver):  # type: ignore[name-defined, misc]
        def receive_weights(self, on_bucket_received: Any) -> None:
            def forward(weights: list[tuple[str, Any]], is_last: bool) -> None:
                on_bucket_received([(name, tensor.clone()) for name, tensor in weights], is_last)

            super().receive_weights(forward)

    transfer.BucketedWeightReceiver = CopyingReceiver


@patch(
    "vllm.model_executor.layers.utils:dispatch_cpu_unquantized_gemm",
    ends_with="test_platform_seams.py::test_vllm_still_packs_linear_weights_away_and_ours_keeps_them",
)
def keep_plain_weights(layer_utils: ModuleType) -> None:
    """vLLM's CPU linear layers pack their weight at load and drop it, so a later weight sync has no target."""
    import torch

    def dispatch(layer: torch.nn.Module, remove_weight: bool) -> None:
        layer.cpu_linear = torch.nn.functional.linear

    layer_utils.dispatch_cpu_unquantized_gemm = dispatch


@patch(
    "vllm.v1.sample.ops.topk_topp_sampler:TopKTopPSampler.forward_cpu",
    ends_with="test_platform_seams.py::test_vllm_still_ignores_a_seed_beside_a_request_without_one_and_ours_heeds_it",
    upstream="vllm-project/vllm#51226",
)
def keep_request_seeds(sampling: ModuleType) -> None:
    """vLLM's CPU sampler ignores every request's seed as soon as one request of the batch has none (or is greedy)."""
    sampler = sampling.TopKTopPSampler
    upstream = sampler.forward_cpu

    @functools.wraps(upstream)
    def forward_cpu(self: Any, logits: Any, generators: dict[int, Any], k: Any, p: Any) -> Any:
        if generators:
            return self.forward_native(logits, generators, k, p)
        return upstream(self, logits, generators, k, p)

    sampler.forward_cpu = forward_cpu


@patch(
    "ray._private.utils:set_omp_num_threads_if_unset",
    ends_with="test_forked_workers.py::test_ray_still_tells_a_worker_of_its_threads_by_a_variable_alone",
)
def tell_torch_of_its_threads(utils: ModuleType) -> None:
    """Ray sets OMP_NUM_THREADS before a worker's task, and torch reads that when it is loaded: before, in a forked
    worker."""
    upstream = utils.set_omp_num_threads_if_unset

    @functools.wraps(upstream)
    def set_omp_num_threads_if_unset() -> bool:
        import torch

        changed = upstream()
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        return changed

    utils.set_omp_num_threads_if_unset = set_omp_num_threads_if_unset
