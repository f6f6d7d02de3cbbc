"""Platform, accelerators, memory, disks, sandbox."""

from __future__ import annotations

import os
import platform as python_platform
import shutil
from pathlib import Path

import psutil

from s2l_ext.doctor.finding import Finding, judged
from s2l_ext.utils.ray_cluster import ray_folder

MIN_FREE_GB = 12
MIN_SHARED_GB = 4
MIN_DISK_GB = 10
OBJECT_STORE_SHARE = 0.3
GB = 1024**3
MACHINES = ("x86_64", "aarch64", "arm64")


def platform() -> list[Finding]:
    """Linux is where verl, vLLM and the sandbox work."""
    system, machine = python_platform.system(), python_platform.machine()
    value = f"{system} {python_platform.release()}, {machine}"
    fix = "Use Linux on x86_64 or aarch64 (a container or WSL 2 will do)."
    return [judged("platform", value, system == "Linux" and machine in MACHINES, fix)]


def accelerators() -> list[Finding]:
    """What torch sees, and whether the CPU was chosen."""
    from s2l_ext.platforms import cpu_chosen

    try:
        names = _devices()
    except Exception as error:
        return [Finding("accelerator", "fail", f"torch cannot look: {error}", "Install the torch of requirements/.")]
    chosen = " (VERL_PLATFORM=cpu)" if cpu_chosen() else ""
    found = ", ".join(names) or "no accelerator: recipes with trainer.device=cpu"
    return [Finding("accelerator", "ok", found + chosen)]


def _devices() -> list[str]:
    """Name and memory of each accelerator; imports torch, not verl."""
    import torch

    if hasattr(torch, "npu") and torch.npu.is_available():
        return [f"{torch.npu.device_count()} NPU"]
    if not torch.cuda.is_available():
        return []
    every = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [f"{each.name}, {each.total_memory / 1e9:.0f} GB" for each in every]


def memory() -> list[Finding]:
    """Cores and memory, under the name that they had before disks got a line of their own."""
    free = psutil.virtual_memory().available / GB
    value = f"{os.cpu_count()} cores, {free:.1f} GB of memory free, {shutil.disk_usage('.').free / GB:.0f} GB of disk"
    return [judged("machine", value, free >= MIN_FREE_GB, f"The toy needs {MIN_FREE_GB} GB of memory.")]


def disks() -> list[Finding]:
    """Where checkpoints, Ray's spilled objects and models go; Ray stops writing at 95 % of a disk."""
    cache = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    places = {"here": Path(), "Ray and temporary": ray_folder(), "model cache": cache}
    free = {name: _usage(path) for name, path in places.items()}
    value = ", ".join(f"{name} {left:.0f} GB free ({used:.0%} used)" for name, (left, used) in free.items())
    short = [name for name, (left, used) in free.items() if left < MIN_DISK_GB or used > 0.95]
    fix = f"Free disk space ({', '.join(short)}), or move RAY_TMPDIR, HF_HOME and trainer.default_local_dir elsewhere."
    return [judged("disk", value, not short, fix, "warn")]


def _usage(path: Path) -> tuple[float, float]:
    """GB free and share used of the disk that a folder is on, or would be."""
    path = path.expanduser().absolute()
    there = next(each for each in (path, *path.parents) if each.exists())
    usage = shutil.disk_usage(there)
    return usage.free / GB, 1 - usage.free / usage.total


def shared_memory(folder: Path = Path("/dev/shm")) -> list[Finding]:
    """Ray's object store and verl's weight transfer live there; Docker gives 64 MB."""
    if not folder.is_dir():
        return [Finding("shared memory", "warn", f"no {folder}", "Ray falls back to the disk. Mount a tmpfs there.")]
    free = shutil.disk_usage(folder).free / GB
    wanted = max(MIN_SHARED_GB, OBJECT_STORE_SHARE * psutil.virtual_memory().total / GB)
    fix = f"docker run --shm-size={wanted:.0f}g (or --ipc=host), else Ray keeps its objects on the disk."
    return [judged("shared memory", f"{free:.1f} GB free of {folder}", free >= MIN_SHARED_GB, fix, "warn")]


def sandbox() -> list[Finding]:
    """The level at which code rewards run programs here, and why higher ones do not work."""
    from s2l_ext.sandbox import runner

    try:
        level, minimum = runner.active_level(), runner.minimum_level()
        refused = [f"{higher.name.lower()}: {reason}" for higher, reason in runner.default().refused.items()]
    except Exception as error:
        return [Finding("sandbox", "fail", f"unavailable: {error}", "docs/sandbox.md says what each level needs.")]
    fix = f"Code rewards refuse to run below {minimum.name.lower()}; docs/sandbox.md says how to get there."
    value = "; ".join([f"level {level.name.lower()}, at least {minimum.name.lower()} wanted", *refused])
    return [judged("sandbox", value, level >= minimum, fix)]
