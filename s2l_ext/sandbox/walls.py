"""Walls around the zygote (namespaces and a minimal root) and around each of its children.

Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from s2l_ext.sandbox import kernel as kernel

INSIDE_USER, NOBODY = 1000, 65534
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
PRIVATE = "/tmp"
"""Inside the walls: the one folder that a program sees as its own. Outside them: where the new root is put together."""


@dataclass
class Walls:
    """What surrounds the zygote's children. ``inner`` is ``namespaces``, ``landlock`` or ``limits``; ``user`` is the id
    that a child takes, None to keep its own and drop capabilities only; ``ruleset`` is Landlock's descriptor;
    ``counted``: the kernel counts the children's tasks apart from the user's other processes.
    """

    inner: str
    scratch: str
    user: int | None = None
    ruleset: int | None = None
    counted: bool = False
    filtered: bool = True
    own_pids: int | None = None


def enter(inner: str, config: dict[str, Any]) -> Walls:
    """Put this process behind walls of one kind. Raises OSError when the kernel will not have it."""
    if inner == "namespaces":
        return _enter_namespaces(config)
    paths = config["readable"]
    user = NOBODY if os.getuid() == 0 and _works(lambda: _readable_by_nobody(paths)) else None
    walls = Walls(inner, config["scratch"], user=user, counted=user is not None)
    if user is not None:
        os.chown(walls.scratch, user, user)
    if inner == "limits":
        walls.filtered = _works(_filtered)
    if inner == "landlock":
        if not kernel.landlock_abi():
            raise OSError(kernel.ENOSYS, "the kernel has no Landlock, or forbids it")
        walls.ruleset = kernel.landlock_ruleset([*config["readable"], *DEVICES[3:]], [walls.scratch, DEVICES[0]])
        os.set_inheritable(walls.ruleset, False)
    return walls


def _works(action: Callable[[], bool]) -> bool:
    """Whether ``action`` succeeds in its own process, which it may spoil."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(OSError):
            os._exit(0 if action() else 1)
        os._exit(1)
    return os.waitpid(child, 0)[1] == 0


def _readable_by_nobody(paths: list[str]) -> bool:
    """Whether an interpreter that became ``nobody`` could still import from ``paths``."""
    _become(NOBODY)
    return all(os.access(path, os.R_OK) for path in paths)


def _filtered() -> bool:
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.seccomp_enter(kernel.seccomp_program(False))
    return True


def _become(user: int) -> None:
    with contextlib.suppress(OSError):
        os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def _enter_namespaces(config: dict[str, Any]) -> Walls:
    mapped = _unshare_user(kernel.NEW_USER | kernel.NEW_NS | kernel.NEW_NET | kernel.NEW_IPC | kernel.NEW_UTS)
    kernel.unshare(kernel.NEW_PID)
    _build_root(config)
    _become_first_process()
    user = INSIDE_USER if mapped else None
    counted = mapped or config["user"] != 0
    return Walls("namespaces", PRIVATE, user=user, counted=counted, own_pids=os.pidfd_open(os.getpid()))


def _unshare_user(flags: int) -> bool:
    """Enter new namespaces; True when a second, unprivileged user could be mapped (only root may)."""
    outside, group, child_end, parent_end = os.getuid(), os.getgid(), *os.pipe()
    target, helper = os.getpid(), os.fork() if outside == 0 else -1
    if helper == 0:
        os.close(parent_end)
        os.read(child_end, 1)
        os._exit(0 if _map_users(target, f"0 0 1\n{INSIDE_USER} {NOBODY} 1") else 1)
    kernel.unshare(flags)
    os.close(parent_end)
    os.close(child_end)
    if helper > 0 and os.waitpid(helper, 0)[1] == 0:
        return True
    if not _map_users(target, f"{INSIDE_USER} {outside} 1", f"{INSIDE_USER} {group} 1"):
        raise OSError(kernel.EPERM, "user ids cannot be mapped into a new user namespace")
    return False


def _map_users(target: int, users: str, groups: str | None = None) -> bool:
    try:
        if groups:
            _write(f"/proc/{target}/setgroups", "deny")
        _write(f"/proc/{target}/uid_map", users)
        _write(f"/proc/{target}/gid_map", groups or users)
    except OSError:
        return False
    return True


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _build_root(config: dict[str, Any]) -> None:
    """A root directory that holds the interpreter's library and five devices, read-only, and nothing else."""
    plain = kernel.MS_NOSUID | kernel.MS_NODEV
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    shown = [path for path in [*config["readable"], *DEVICES] if os.path.exists(path)]
    opened = [os.open(path, os.O_PATH | os.O_CLOEXEC) for path in shown]
    kernel.mount("root", PRIVATE, "tmpfs", plain, "size=1m,mode=755")
    for path, source in zip(shown, opened, strict=True):
        _show(source, f"{PRIVATE}{path}")
        os.close(source)
    os.makedirs(f"{PRIVATE}{PRIVATE}", exist_ok=True)
    os.symlink(PRIVATE, f"{PRIVATE}/dev/shm")
    kernel.mount("tmp", f"{PRIVATE}{PRIVATE}", "tmpfs", plain, "size=1m,mode=755")
    kernel.read_only(PRIVATE)
    kernel.change_root(PRIVATE)


def _show(source: int, target: str) -> None:
    """Bind an open file or folder of the old root into the new one."""
    path = f"/proc/self/fd/{source}"
    os.makedirs(os.path.dirname(target), mode=0o755, exist_ok=True)
    if os.path.isdir(path):
        os.makedirs(target, mode=0o755, exist_ok=True)
    else:
        os.close(os.open(target, os.O_CREAT, 0o644))
    kernel.mount(path, target, None, kernel.MS_BIND | kernel.MS_REC)


def _become_first_process() -> None:
    """Continue as process 1 of the new PID namespace: its end is the end of everything inside."""
    child = os.fork()
    if child == 0:
        kernel.prctl(kernel.PR_SET_PDEATHSIG, signal.SIGKILL)
        return
    os.closerange(3, 1024)
    os._exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF)


def private_mounts(walls: Walls, limits: dict[str, Any]) -> None:
    """A fresh, bounded private folder and System V IPC for one child."""
    if walls.inner == "namespaces":
        kernel.unshare(kernel.NEW_NS | kernel.NEW_IPC)
        size = f"size={limits['scratch_bytes']},nr_inodes={limits['scratch_files']},mode=1777"
        kernel.mount("tmp", PRIVATE, "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, size)
    os.chdir(walls.scratch)


def confine(walls: Walls, limits: dict[str, Any]) -> None:
    """Give up, for good, what a child does not need. The last thing done before code of others runs."""
    processes = bool(limits["processes"]) and walls.inner == "namespaces" and walls.counted
    _limit_resources(walls, limits)
    if walls.user is not None:
        _become(walls.user)
    kernel.drop_capabilities()
    kernel.prctl(kernel.PR_SET_NO_NEW_PRIVS, 1)
    kernel.prctl(kernel.PR_SET_DUMPABLE, 0)
    if walls.ruleset is not None:
        kernel.landlock_enter(walls.ruleset)
        os.close(walls.ruleset)
    if walls.filtered:
        kernel.seccomp_enter(kernel.seccomp_program(processes))


def _limit_resources(walls: Walls, limits: dict[str, Any]) -> None:
    wanted = {
        resource.RLIMIT_CPU: limits["cpu_s"],
        resource.RLIMIT_AS: limits["memory_bytes"],
        resource.RLIMIT_FSIZE: limits["file_bytes"],
        resource.RLIMIT_NOFILE: limits["open_files"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_MEMLOCK: 0,
    }
    if walls.counted:
        wanted[resource.RLIMIT_NPROC] = limits["tasks"]
    for kind, value in wanted.items():
        highest = resource.getrlimit(kind)[1]
        bounded = value if highest == resource.RLIM_INFINITY else min(value, highest)
        resource.setrlimit(kind, (bounded, bounded))


def empty(folder: str) -> None:
    """Remove what a child left in its folder, whatever modes and depths it made.

    Folders inside folders are moved up first, so no path grows beyond what the kernel accepts.
    """
    moved = 0
    prefix = os.urandom(8).hex()
    while names := os.listdir(folder):
        for name in names:
            path = os.path.join(folder, name)
            if not _opened_up(path):
                os.unlink(path)
                continue
            for inner in os.listdir(path):
                below = os.path.join(path, inner)
                if _opened_up(below):
                    moved += 1
                    os.rename(below, os.path.join(folder, f"{prefix}{moved}"))
                else:
                    os.unlink(below)
            os.rmdir(path)


def _opened_up(path: str) -> bool:
    """Whether ``path`` is a folder; if so its owner may now list and change it."""
    if os.path.islink(path) or not os.path.isdir(path):
        return False
    os.chmod(path, 0o700)
    return True
