"""A CPU platform for verl, through verl's own platform registry.

verl 0.9.1 knows CUDA, NPU and ROCm. This class answers the same questions for a machine that has none of
them; gloo carries the collectives and shared memory carries the weights to vLLM.
"""

from __future__ import annotations

import types
from contextlib import nullcontext
from typing import Any

import torch
from verl.plugin.platform import PlatformRegistry
from verl.plugin.platform.platform_base import PlatformBase


def _nothing(*args: Any, **kwargs: Any) -> Any:
    return None


def _free_and_total(*args: Any, **kwargs: Any) -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return memory.available, memory.total


def _device_module() -> types.ModuleType:
    """``torch.cpu`` completed with what verl asks of ``torch.cuda``."""
    module = types.ModuleType("torch_cpu_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu) if not name.startswith("__")})
    for name in ("memory_reserved", "memory_allocated", "max_memory_allocated", "max_memory_reserved"):
        setattr(module, name, lambda *args, **kwargs: 0)
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "set_device", "manual_seed_all"):
        setattr(module, name, _nothing)
    for name in ("get_rng_state", "set_rng_state", "manual_seed"):
        setattr(module, name, getattr(torch, name))
    module.__dict__.update(mem_get_info=_free_and_total, get_device_name=lambda *args: "cpu")
    return module


class PlatformCPU(PlatformBase):
    """verl's platform interface on a machine without an accelerator."""

    device_name = vendor_name = "cpu"
    device_module = _device_module()

    set_device = synchronize = set_allocator_settings = empty_cache = _nothing
    profiler_start = profiler_stop = cudart = _nothing

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        """Never auto-detected: the CPU is only used when chosen by ``VERL_PLATFORM=cpu``."""
        return False

    def current_device(self) -> str:  # type: ignore[override]
        """A device string: verl passes this to ``Tensor.to``, where an index would mean an accelerator."""
        return "cpu"

    def device_count(self) -> int:
        return 1

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    manual_seed_all = manual_seed

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CPU_VISIBLE_DEVICES"

    def nvtx_range(self, msg: str) -> Any:
        return nullcontext()

    def ray_resource_name(self) -> str:
        """Logical "GPU" slots: Ray is started with ``num_gpus=N`` and verl places one worker on each."""
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        """False makes verl send weights to vLLM through shared memory."""
        return False


def register() -> None:
    """Enter the platform in verl's registry under the name ``cpu``."""
    PlatformRegistry.register(platform="cpu")(PlatformCPU)
