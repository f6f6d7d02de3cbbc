"""What the sandbox asks of Linux: namespaces, mounts, capabilities, Landlock and a seccomp filter, through ctypes.

Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from collections.abc import Iterable

LIBC = ctypes.CDLL(None, use_errno=True)

NEW_NS, NEW_CGROUP, NEW_UTS, NEW_IPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
NEW_USER, NEW_PID, NEW_NET = 0x10000000, 0x20000000, 0x40000000
CLONE_THREAD = 0x00010000

MS_NOSUID, MS_NODEV, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 32, 4096, 16384, 1 << 18
MS_RDONLY, MNT_DETACH = 1, 2
AT_RECURSIVE, ATTR_READ_ONLY_NOSUID = 0x8000, 0x1 | 0x2
AT_FDCWD = -100

PR_SET_DUMPABLE, PR_SET_PDEATHSIG, PR_SET_SECCOMP = 4, 1, 22
PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 24, 38

EPERM, ENOSYS = 1, 38
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_LOAD, _EQUAL, _SET, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06

# Numbers up to 423 differ between machines, later ones do not.
_X86_64 = """
ptrace=101 process_vm_readv=310 process_vm_writev=311 kcmp=312 mount=165 umount2=166 pivot_root=155 chroot=161
unshare=272 setns=308 bpf=321 perf_event_open=298 userfaultfd=323 add_key=248 request_key=249 keyctl=250
kexec_load=246 kexec_file_load=320 init_module=175 finit_module=313 delete_module=176 reboot=169 swapon=167
swapoff=168 quotactl=179 open_by_handle_at=304 name_to_handle_at=303 socket=41 connect=42 accept=43 bind=49
listen=50 accept4=288 personality=135 syslog=103 acct=163 settimeofday=164 clock_settime=227 clock_adjtime=305
adjtimex=159 sethostname=170 setdomainname=171 iopl=172 ioperm=173 vhangup=153 modify_ldt=154 migrate_pages=256
move_pages=279 mbind=237 set_mempolicy=238 fanotify_init=300 inotify_init=253 inotify_init1=294 shmget=29
shmat=30 shmctl=31 msgget=68 semget=64 mq_open=240 memfd_create=319 execve=59 execveat=322 kill=62 tkill=200
tgkill=234 rt_sigqueueinfo=129 rt_tgsigqueueinfo=297 truncate=76 chmod=90 fchmod=91 chown=92 fchown=93 lchown=94
fchownat=260 fchmodat=268 setxattr=188 lsetxattr=189 fsetxattr=190 removexattr=197 lremovexattr=198
fremovexattr=199 utime=132 utimes=235 futimesat=261 utimensat=280 prlimit64=302 setpriority=141
sched_setaffinity=203 sched_setattr=314 sched_setparam=142 sched_setscheduler=144 ioprio_set=251 mknod=133
mknodat=259 clone=56 fork=57 vfork=58 fcntl=72 prctl=157 io_setup=206
"""
_AARCH64 = """
ptrace=117 process_vm_readv=270 process_vm_writev=271 kcmp=272 mount=40 umount2=39 pivot_root=41 chroot=51
unshare=97 setns=268 bpf=280 perf_event_open=241 userfaultfd=282 add_key=217 request_key=218 keyctl=219
kexec_load=104 kexec_file_load=294 init_module=105 finit_module=273 delete_module=106 reboot=142 swapon=224
swapoff=225 quotactl=60 open_by_handle_at=265 name_to_handle_at=264 socket=198 connect=203 accept=202 bind=200
listen=201 accept4=242 personality=92 syslog=116 acct=89 settimeofday=170 clock_settime=112 clock_adjtime=266
adjtimex=171 sethostname=161 setdomainname=162 vhangup=58 migrate_pages=238 move_pages=239 mbind=235
set_mempolicy=237 fanotify_init=262 inotify_init1=26 shmget=194 shmctl=195 shmat=196 msgget=186 semget=190
mq_open=180 memfd_create=279 execve=221 execveat=281 kill=129 tkill=130 tgkill=131 rt_sigqueueinfo=138
rt_tgsigqueueinfo=240 truncate=45 fchmod=52 fchmodat=53 fchownat=54 fchown=55 setxattr=5 lsetxattr=6 fsetxattr=7
removexattr=14 lremovexattr=15 fremovexattr=16 utimensat=88 prlimit64=261 setpriority=140 sched_setaffinity=122
sched_setattr=274 sched_setparam=118 sched_setscheduler=119 ioprio_set=30 mknodat=33 clone=220 fcntl=25
prctl=167 io_setup=0
"""
_MACHINES = {"x86_64": (0xC000003E, _X86_64), "aarch64": (0xC00000B7, _AARCH64)}
_COMMON = {
    "pidfd_send_signal": 424, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427,
    "open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "fspick": 433,
    "pidfd_open": 434, "clone3": 435, "pidfd_getfd": 438, "process_madvise": 440, "mount_setattr": 442,
    "quotactl_fd": 443, "memfd_secret": 447, "process_mrelease": 448, "fchmodat2": 452, "setxattrat": 463,
    "removexattrat": 466, "open_tree_attr": 467, "file_setattr": 469,
}  # fmt: skip

_SPECIAL = {"kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "clone", "clone3", "fcntl", "prctl", "prlimit64"}
_PROCESSES = {"fork", "vfork", "execve", "execveat"}


def check(result: int, what: str) -> int:
    """``result`` unless it is negative, which raises OSError with errno."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def unshare(flags: int) -> None:
    check(LIBC.unshare(flags), "unshare")


def setns(descriptor: int, kind: int) -> None:
    check(LIBC.setns(descriptor, kind), "setns")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    arguments = (source.encode(), target.encode(), kind.encode() if kind else None)
    check(LIBC.mount(*arguments, ctypes.c_ulong(flags), data.encode() if data else None), f"mount {target}")


def read_only(path: str) -> None:
    """Make every mount below ``path`` read-only and without set-uid programs (Linux 5.12 or later)."""
    attributes = struct.pack("QQQQ", ATTR_READ_ONLY_NOSUID, 0, 0, 0)
    _syscall(442, f"mount_setattr {path}", AT_FDCWD, path.encode(), AT_RECURSIVE, attributes, len(attributes))


def change_root(path: str) -> None:
    """Make ``path``, a mount, the root directory and let go of the old one."""
    os.chdir(path)
    _syscall(155 if platform.machine() == "x86_64" else 41, "pivot_root", b".", b".")
    check(LIBC.umount2(b".", MNT_DETACH), "umount2")
    os.chdir("/")


def prctl(option: int, *arguments: int) -> None:
    padded = [ctypes.c_ulong(value) for value in (*arguments, 0, 0, 0, 0)[:4]]
    check(LIBC.prctl(option, *padded), f"prctl {option}")


def drop_capabilities() -> None:
    """Give up every capability for good, the bounding set included."""
    for capability in range(64):
        if LIBC.prctl(PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0) < 0:
            break
    header = struct.pack("Ii", 0x20080522, 0)
    check(LIBC.capset(header, struct.pack("IIIIII", *[0] * 6)), "capset")


def _syscall(number: int, what: str, *arguments: object) -> int:
    plain = [ctypes.c_long(value) if isinstance(value, int) else value for value in arguments]
    return check(LIBC.syscall(ctypes.c_long(number), *plain), what)


def landlock_abi() -> int:
    """Version of Landlock; 0 when the kernel lacks it or forbids it."""
    return max(0, LIBC.syscall(ctypes.c_long(444), None, ctypes.c_size_t(0), ctypes.c_uint(1)))


def landlock_ruleset(readable: Iterable[str], writable: Iterable[str]) -> int:
    """Descriptor of a rule set: read below ``readable``, anything but devices and sockets below ``writable``."""
    abi = landlock_abi()
    everything = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)) - 1
    fields = [everything] + ([0x3] if abi >= 4 else []) + ([0x3] if abi >= 6 else [])
    attributes = struct.pack(f"{len(fields)}Q", *fields)
    ruleset = _syscall(444, "landlock_create_ruleset", attributes, len(attributes), 0)
    make_special = 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11
    for paths, access in ((readable, 0b1101), (writable, everything & ~make_special)):
        for path in paths:
            _allow_below(ruleset, path, access)
    return ruleset


def _allow_below(ruleset: int, path: str, access: int) -> None:
    try:
        parent = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    if not os.path.isdir(path):
        access &= 0b0111 | 1 << 14
    try:
        _syscall(445, f"landlock_add_rule {path}", ruleset, 1, struct.pack("=Qi", access, parent), 0)
    finally:
        os.close(parent)


def landlock_enter(ruleset: int) -> None:
    _syscall(446, "landlock_restrict_self", ruleset, 0)


def _step(code: int, value: int, jump_true: int = 0, jump_false: int = 0) -> bytes:
    return struct.pack("HBBI", code, jump_true, jump_false, value & 0xFFFFFFFF)


def _deny(number: int, error: int = EPERM) -> bytes:
    return _step(_EQUAL, number, 0, 1) + _step(_RETURN, _ERRNO | error)


def _deny_if(number: int, argument: int, test: int, value: int, *, matches: bool) -> bytes:
    """Deny call ``number`` when the low half of an argument does (or does not) pass the test."""
    verdict = _step(test, value, 0 if matches else 1, 1 if matches else 0) + _step(_RETURN, _ERRNO | EPERM)
    body = _step(_LOAD, 16 + 8 * argument) + verdict + _step(_LOAD, 0)
    return _step(_EQUAL, number, 0, len(body) // 8) + body


def seccomp_program(processes: bool) -> bytes:
    """A filter that denies sockets, tracing, mounting, other processes' signals and the like. ``processes`` allows
    fork, exec and signals; the caller then needs a PID namespace of its own. OSError if this machine's system calls are
    not known.
    """
    machine = platform.machine()
    if machine not in _MACHINES:
        raise OSError(ENOSYS, f"no system call table for {machine}")
    audit, table = _MACHINES[machine]
    pairs = (item.split("=") for item in table.split())
    numbers = {name: int(number) for name, number in pairs} | _COMMON
    steps = [_step(_LOAD, 4), _step(_EQUAL, audit, 1, 0), _step(_RETURN, _KILL), _step(_LOAD, 0)]
    if machine == "x86_64":
        steps += [_step(_AT_LEAST, 0x40000000, 0, 1), _step(_RETURN, _ERRNO | ENOSYS)]
    skipped = _SPECIAL | (_PROCESSES if processes else set())
    steps += [_deny(number) for name, number in numbers.items() if name not in skipped]
    steps += _special_rules(numbers, processes)
    return b"".join([*steps, _step(_RETURN, _ALLOW)])


def _special_rules(numbers: dict[str, int], processes: bool) -> list[bytes]:
    own = os.getpid()
    namespaces = NEW_NS | NEW_CGROUP | NEW_UTS | NEW_IPC | NEW_USER | NEW_PID | NEW_NET
    rules = [_deny(numbers["clone3"], ENOSYS)]
    rules += [_deny_if(numbers["clone"], 0, _SET, namespaces, matches=True)]
    rules += [_deny_if(numbers["fcntl"], 1, _EQUAL, command, matches=True) for command in (8, 10, 15)]
    rules += [_deny_if(numbers["prctl"], 0, _EQUAL, PR_SET_PDEATHSIG, matches=True)]
    rules += [_deny_if(numbers["prlimit64"], 0, _EQUAL, 0, matches=False)]
    if not processes:
        rules += [_deny_if(numbers["clone"], 0, _SET, CLONE_THREAD, matches=False)]
        for name in ("kill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo"):
            rules += [_deny_if(numbers[name], 0, _EQUAL, own, matches=False)]
    return rules


def seccomp_enter(program: bytes) -> None:
    """Filter this thread and everything it starts, for good."""

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.c_char_p))

    argument = Program(len(program) // 8, program)
    check(LIBC.prctl(PR_SET_SECCOMP, ctypes.c_ulong(2), ctypes.byref(argument), 0, 0), "seccomp")
