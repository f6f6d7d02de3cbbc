"""Levels of isolation, what each one stops, and how a zygote of each level is started."""

from __future__ import annotations

import enum
import json
import os
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from s2l_ext.errors import ConfigError
from s2l_ext.sandbox.walls import PRIVATE

FOLDER = Path(__file__).parent
SYSTEM_PATHS = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/localtime", "/etc/ld.so.cache")
BUBBLEWRAP_TMP = str(64 * 2**20)
BOOT = """
import sys, types
sys.path[:] = [path for path in sys.path if path]
for name, path in (("s2l_ext", []), ("s2l_ext.sandbox", [{folder!r}])):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = path
from s2l_ext.sandbox import zygote as sandbox_zygote
sandbox_zygote.main({config!r})
"""
ENVIRONMENT = {
    "PATH": "/nonexistent",
    "HOME": PRIVATE,
    "LANG": "C.UTF-8",
    "PYTHONUTF8": "1",
    "PYTHONHASHSEED": "0",
    "PYTHONDONTWRITEBYTECODE": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}


class Level(enum.IntEnum):
    """Ordered: a higher level stops all that a lower one stops."""

    LIMITS = 1
    LANDLOCK = 2
    NAMESPACES = 3
    BUBBLEWRAP = 4


DEFAULT_MINIMUM = Level.LANDLOCK
GUARANTEES = {
    Level.LIMITS: "time, memory and size limits, clean environment; files and network of the user are NOT protected",
    Level.LANDLOCK: "seccomp filter and Landlock: no network, no other processes, no files but a private folder",
    Level.NAMESPACES: "own root, process, network, IPC and user namespaces per program, plus the seccomp filter",
    Level.BUBBLEWRAP: "a bubblewrap container around the walls of the highest other level that works inside it",
}
HIGHER = (
    "Install bubblewrap (apt-get install bubblewrap), or allow unprivileged user namespaces "
    "(sysctl kernel.unprivileged_userns_clone=1, kernel.apparmor_restrict_unprivileged_userns=0; "
    "in Docker --security-opt seccomp=unconfined), or use Linux 5.13 or later with Landlock enabled."
)


def parse_level(value: str | int | Level) -> Level:
    """A level from its name or number. Raises ConfigError for anything else."""
    try:
        return Level[value.upper()] if isinstance(value, str) else Level(value)
    except (KeyError, ValueError):
        names = ", ".join(level.name.lower() for level in Level)
        raise ConfigError(f"sandbox level {value!r} is unknown; use one of {names}") from None


def readable_paths(packages: Sequence[str]) -> list[str]:
    """Folders and files a program may read: the interpreter's library, shared libraries, time zones, packages."""
    base = {"base": sys.base_prefix, "platbase": sys.base_exec_prefix}
    interpreter = [sysconfig.get_path(name, vars=base) for name in ("stdlib", "platstdlib")]
    interpreter += [sysconfig.get_config_var("LIBDIR") or "", f"{sys.base_prefix}/lib"]
    found = {path for path in [*interpreter, *SYSTEM_PATHS, *packages] if path and os.path.exists(path)}
    return sorted(path for path in found if not any(path.startswith(f"{other}/") for other in found))


def interpreter() -> str:
    """The interpreter below any virtual environment."""
    return str(getattr(sys, "_base_executable", sys.executable))


def command(level: Level, control: int, scratch: str, packages: Sequence[str]) -> list[str]:
    """Command line of a zygote that talks over descriptor ``control``."""
    readable = readable_paths(packages)
    inner = {Level.LIMITS: ["limits"], Level.LANDLOCK: ["landlock"], Level.NAMESPACES: ["namespaces"]}
    config = {
        "inner": inner.get(level, ["namespaces", "landlock"]),
        "control": control,
        "scratch": scratch,
        "readable": readable,
        "packages": list(packages),
        "user": os.getuid(),
    }
    boot = BOOT.format(folder=str(FOLDER), config=json.dumps(config))
    python = [interpreter(), "-S", "-s", "-B", "-c", boot]
    return python if level is not Level.BUBBLEWRAP else [*_bubblewrap(readable, scratch), *python]


def _bubblewrap(readable: list[str], scratch: str) -> list[str]:
    program = shutil.which("bwrap")
    if program is None:
        raise OSError("bwrap is not on PATH")
    options = ["--unshare-user", "--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--clearenv"]
    for path in [*readable, str(FOLDER), interpreter()]:
        options += ["--ro-bind", path, path]
    for name, value in ENVIRONMENT.items():
        options += ["--setenv", name, value]
    options += ["--dev", "/dev", "--proc", "/proc", "--size", BUBBLEWRAP_TMP, "--tmpfs", PRIVATE]
    options += ["--dir", scratch, "--chdir", "/"]
    return [program, *options, "--"]
