"""Programs that attack the host, the pool or the judge's resources. Each must score 0 and leave everything as it was.

A program returns the right sum only if its attack worked, so "not passed" means that the attack was stopped.
"""

# ruff: noqa: E501 - a program a line
from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from s2l_ext.rewards.code import run_tests
from s2l_ext.sandbox import worker as sandbox_worker
from s2l_ext.sandbox.runner import Level, Limits, Sandbox, SandboxUnavailable

pytestmark = pytest.mark.slow  # half a minute on two cores

SHORT_S = 0.5
RIGHT = "def add(a, b):\n    return a + b\n"
TESTS = "def check(candidate):\n    assert candidate(1, 2) == 3\n    assert candidate(-4, 4) == 0\n"
SECRET = "s2l-canary-b27f"
LIMITS = Limits(memory_bytes=2**28, output_bytes=2**16, file_bytes=2**20, scratch_bytes=2**22, scratch_files=100)

# name: lines of add(a, b), run before "return a + b". Long ones end by the time limit.
QUICK = {
    "memory bomb": "x = bytearray(2**30)",
    "memory bomb in pieces": "x = [bytearray(2**20) for _ in range(2000)]",
    "memory bomb in an anonymous map": "import mmap; x = mmap.mmap(-1, 2**31)",
    "memory bomb outside the heap": "import os; f = os.memfd_create('x')",
    "integer bomb": "x = 1 << (8 * 2**30)",
    "decompression bomb": "import zlib; z = zlib.compress(bytes(2**24)); x = [zlib.decompress(z) for _ in range(40)]",
    "output flood": "while True: print('y' * 4096)",
    "stderr flood": "import sys\nwhile True: sys.stderr.write('y' * 4096)",
    "raw output flood": "import os\nwhile True: os.write(1, b'y' * 65536)",
    "huge file": "f = open('big', 'wb')\nfor _ in range(64): f.write(bytes(2**20)); f.flush()",
    "sparse file": "import os; f = os.open('big', os.O_CREAT | os.O_RDWR); os.truncate(f, 2**40)",
    "many open files": "x = [open('/dev/null') for _ in range(5000)]",
    "fork": "import os, time\nif os.fork() == 0: time.sleep(60)",
    "fork bomb": "import os\nwhile True: os.fork()",
    "double fork daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)",
    "subprocess": "import subprocess; subprocess.run(['/bin/true'], check=True)",
    "exec of another binary": "import os; os.execv('/bin/echo', ['echo', '{{\"passed\": true}}'])",
    "exec of the interpreter": "import os, sys; os.execv({python!r}, ['python', '-c', 'pass'])",
    "multiprocessing": "import multiprocessing as m; p = m.get_context('fork').Process(target=print); p.start()",
    "shell": "import os; assert os.system('true') == 0",
    "TCP to the host": "import socket; socket.create_connection(('127.0.0.1', {port}), 1)",
    "TCP to the internet": "import socket; socket.create_connection(('1.1.1.1', 53), 1)",
    "UDP to the host": "import socket; socket.socket(2, 2).sendto(b'x', ('127.0.0.1', {udp}))",
    "unix socket of the host": "import socket; socket.socket(socket.AF_UNIX).connect({unix!r})",
    "abstract socket of the host": "import socket; socket.socket(socket.AF_UNIX).connect('\\0' + {abstract!r})",
    "listening": "import socket; socket.create_server(('0.0.0.0', 0))",
    "raw socket": "import socket; socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
    "netlink socket": "import socket; socket.socket(16, 3, 0)",
    "DNS": "import socket; socket.getaddrinfo('example.com', 80)",
    "HTTP": "import urllib.request; urllib.request.urlopen('http://127.0.0.1:{port}', timeout=1)",
    "reading the home": "assert {secret!r} in open({at_home!r}).read()",
    "writing to the home": "open({at_home!r}, 'r+').write('gone')",
    "listing the home": "import os; assert os.path.basename({at_home!r}) in os.listdir({home!r})",
    "reading a file of the user": "assert {secret!r} in open({canary!r}).read()",
    "reading the password file": "assert open('/etc/passwd').read()",
    "listing the root's other folders": "import os; assert os.listdir('/var') + os.listdir('/opt') + os.listdir('/run')",
    "reading a block device": "import os; assert os.open('/dev/vda', os.O_RDONLY)",
    "environment secret": "import os; assert os.environ['S2L_TEST_SECRET']",
    "environment of process 1": "assert {secret!r}.encode() in open('/proc/1/environ', 'rb').read()",
    "environment of the parent": "assert {secret!r}.encode() in open('/proc/{parent}/environ', 'rb').read()",
    "command line of the parent": "assert open('/proc/{parent}/cmdline', 'rb').read()",
    "descriptors of the parent": "import os; assert os.listdir('/proc/{parent}/fd')",
    "root through proc": "import os; assert os.listdir('/proc/1/root/') + os.listdir('/proc/{parent}/root/')",
    "own memory through proc": "f = open('/proc/self/mem', 'r+b', 0)",
    "overwriting a file": "open({canary!r}, 'w').write('gone'); assert 'add' in open({canary!r}).read()",
    "appending to a file": "open({canary!r}, 'r+').write('gone')",
    "deleting a file": "import os; os.unlink({canary!r})",
    "deleting a tree": "import shutil; shutil.rmtree({folder!r})",
    "deleting everything": "import os; [os.unlink(os.path.join('/usr/lib', n)) for n in os.listdir('/usr/lib')]",
    "renaming": "import os; os.rename({canary!r}, {canary!r} + '.moved')",
    "writing a new file outside": "open('/usr/lib/s2l_planted.py', 'w').write('x')",
    "writing to the interpreter's library": "import os; open(os.path.dirname(os.__file__) + '/s2l_planted.py', 'w')",
    "chmod": "import os; os.chmod({canary!r}, 0o777)",
    "chown": "import os; os.chown({canary!r}, 1, 1)",
    "truncate": "import os; os.truncate({canary!r}, 0)",
    "changing times": "import os; os.utime({canary!r}, (0, 0))",
    "symbolic link out": "import os; os.symlink({canary!r}, 'link'); assert {secret!r} in open('link').read()",
    "writing through a symbolic link": "import os; os.symlink({canary!r}, 'link'); open('link', 'r+').write('gone')",
    "hard link out": "import os; os.link({canary!r}, 'link'); assert open('link').read()",
    "dot dot": "assert {secret!r} in open('../../../../../..' + {canary!r}).read()",
    "chroot escape": "import os; os.mkdir('d'); os.chroot('d'); os.chdir('../../../..'); os.chroot('.')",
    "mounting": "import ctypes; assert ctypes.CDLL(None).mount(b'x', b'/tmp', b'tmpfs', 0, None) == 0",
    "new namespaces by system call": "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
    "joining a namespace": "import ctypes, os; f = os.open('/proc/1/ns/net', 0); assert ctypes.CDLL(None).setns(f, 0) == 0",
    "ptrace of the parent": "import ctypes; assert ctypes.CDLL(None).ptrace(16, {parent}, 0, 0) == 0",
    "fork by system call": "import ctypes; assert ctypes.CDLL(None).syscall(57 if {x86} else 220, 17, 0, 0, 0, 0) >= 0",
    "socket by system call": "import ctypes; assert ctypes.CDLL(None).syscall(41 if {x86} else 198, 2, 1, 0) >= 0",
    "io_uring": "import ctypes; assert ctypes.CDLL(None).syscall(425, 8, ctypes.create_string_buffer(256)) >= 0",
    "bpf": "import ctypes; assert ctypes.CDLL(None).syscall(321 if {x86} else 280, 0, 0, 0) >= 0",
    "keyring": "import ctypes; assert ctypes.CDLL(None).syscall(250 if {x86} else 219, 0, -3, 1) >= 0",
    "becoming root": "import os; os.setuid(0); os.setgid(0); assert open('/etc/shadow').read()",
    "signal to the parent": "import os; os.kill({parent}, 10)",
    "signal to the parent's group": "import os; os.killpg({group}, 10)",
    "signal to everything": "import os; os.kill(-1, 10); os.kill({parent}, 0)",
    "signal by queue": "import ctypes; assert ctypes.CDLL(None).sigqueue({parent}, 10, 0) == 0",
    "limits of the parent": "import resource as r; r.prlimit({parent}, r.RLIMIT_NOFILE, (9, 9))",
    "raising its own limits": "import resource as r; r.setrlimit(r.RLIMIT_AS, (-1, -1)); x = bytearray(2**29)",
    "priority of the parent": "import os; os.setpriority(os.PRIO_PROCESS, {parent}, 19)",
    "pidfd of the parent": "import os; os.pidfd_open({parent})",
    "System V shared memory": "import ctypes; assert ctypes.CDLL(None).shmget(7, 2**30, 0o1777) >= 0",
    "recursion": "f = lambda n: f(n + 1); f(0)",
    "segmentation fault": "import ctypes; ctypes.string_at(0)",
    "abort": "import os; os.abort()",
    "closing every descriptor": "import os; os.closerange(0, 1024)",
    "thread bomb": "import threading, time\nx = [threading.Thread(target=time.sleep, args=(60,)).start() for _ in range(9999)]",
}
LONG = {
    "infinite loop": "while True: pass",
    "sleep": "import time; time.sleep(60)",
    "regular expression": "import re; re.match('(a+)+$', 'a' * 40 + 'b')",
    "ignored signals": "import signal\nfor n in (1, 2, 14, 15, 24): signal.signal(n, signal.SIG_IGN)\nwhile True: pass",
    "swallowed exceptions": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "stopping itself": "import signal, os; os.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "recursion without a limit": "import sys; sys.setrecursionlimit(10**9); f = lambda n: f(n + 1); f(0)",
    "endless iterator": "import itertools; return itertools.count()\n#",
    "long power": "x = 9 ** 9 ** 9",
    "threads that outlive": "import threading, time\nthreading.Thread(target=time.sleep, args=(60,)).start()\ntime.sleep(60)",
}
WHOLE = {
    "compile bomb of nesting": "x = " + "(" * 5000 + ")" * 5000 + "\n" + RIGHT,
    "compile bomb of folding": "x = ((1 << 10**6) ** 9999999)\n" + RIGHT,
    "compile bomb of operators": "x = " + "-" * 200000 + "1\n" + RIGHT,
    "many files": "for n in range(5000): open(str(n), 'w').write('x' * 100)\n" + RIGHT,
    "deep folders": "import os\nfor _ in range(3000): os.mkdir('d'); os.chdir('d')\nopen('x' * 300, 'w')\n" + RIGHT,
    "locked folders": "import os\nos.makedirs('a/b'); os.mkdir('c', 0); os.mkdir('a/e', 0)\nraise OSError\n",
}


@pytest.fixture(scope="module")
def host(tmp_path_factory):
    """Things of the host that programs try to reach."""
    folder = Path("/var/tmp") / f"s2l-{os.getpid()}"
    folder.mkdir()
    folder.chmod(0o777)
    canary = folder / "canary"
    canary.write_text(SECRET)
    canary.chmod(0o666)
    at_home = Path.home() / f".s2l-{os.getpid()}"
    at_home.write_text(SECRET)
    os.environ["S2L_TEST_SECRET"] = SECRET
    signals: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: signals.append(number))
    tcp, udp, unix, abstract = (socket.socket(a, k) for a, k in ((2, 1), (2, 2), (1, 1), (1, 1)))
    for each, address in ((tcp, ("127.0.0.1", 0)), (udp, ("127.0.0.1", 0)), (unix, str(folder / "socket"))):
        each.bind(address)
    abstract.bind(f"\0s2l-{os.getpid()}")
    for each in (tcp, unix, abstract):
        each.listen()
    for each in (tcp, udp, unix, abstract):
        each.setblocking(False)
    Path(folder / "socket").chmod(0o777)
    words = {
        "port": tcp.getsockname()[1], "udp": udp.getsockname()[1], "unix": str(folder / "socket"),
        "abstract": f"s2l-{os.getpid()}", "home": str(Path.home()), "at_home": str(at_home), "canary": str(canary), "folder": str(folder),
        "secret": SECRET, "parent": os.getpid(), "group": os.getpgid(0), "python": sys.executable,
        "x86": os.uname().machine == "x86_64",
    }  # fmt: skip
    bystander = subprocess.Popen(["sleep", "600"])
    yield {"words": words, "signals": signals, "sockets": (tcp, udp, unix, abstract), "bystander": bystander}
    bystander.kill()
    bystander.wait()
    signal.signal(signal.SIGUSR1, before)
    for each in (tcp, udp, unix, abstract):
        each.close()
    shutil.rmtree(folder)
    at_home.unlink()
    del os.environ["S2L_TEST_SECRET"]


def _pool(level: Level) -> Sandbox:
    try:
        return Sandbox(level, workers=1)
    except SandboxUnavailable as error:
        pytest.skip(f"sandbox level {level.name.lower()} does not work here: {error}")


@pytest.fixture(scope="module")
def best():
    pool = Sandbox(workers=1)
    if pool.level < Level.LANDLOCK:
        pool.close()
        pytest.skip(f"hostile programs are not run at level {pool.level.name.lower()}: {pool.refused}")
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def landlock():
    pool = _pool(Level.LANDLOCK)
    yield pool
    pool.close()


@pytest.fixture(scope="module")
def namespaces():
    pool = _pool(Level.NAMESPACES)
    yield pool
    pool.close()


def descendants() -> set[int]:
    """Ids of the living processes below this one, those of other pools included."""
    children: dict[int, list[int]] = {}
    for each in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = each.read_text().rpartition(")")[2].split()[:2]
            if state != "Z":
                children.setdefault(int(parent), []).append(int(each.parent.name))
    found, ask = set(), [os.getpid()]
    while ask:
        new = children.get(ask.pop(), [])
        found.update(new)
        ask += new
    return found


def attack(host: dict, pool: Sandbox, program: str, seconds: float = 5.0, limits: Limits = LIMITS) -> None:
    canary = Path(host["words"]["canary"])
    environment, before = dict(os.environ), (canary.stat().st_mode, canary.stat().st_uid, int(canary.stat().st_mtime))
    processes = descendants()
    assert len(processes) >= 3, "the bystander, a zygote and its launcher"
    outcome = run_tests(program, TESTS, seconds, entry_point="add", pool=pool, limits=limits)
    assert not outcome.passed and outcome.reason, outcome
    assert outcome.num_passed < outcome.num_total
    assert run_tests(RIGHT, TESTS, 20, entry_point="add", pool=pool).passed
    assert descendants() <= processes
    assert canary.read_text() == Path(host["words"]["at_home"]).read_text() == SECRET
    assert (canary.stat().st_mode, canary.stat().st_uid, int(canary.stat().st_mtime)) == before
    assert host["signals"] == [] and host["bystander"].poll() is None and dict(os.environ) == environment
    assert not Path("/usr/lib/s2l_planted.py").exists()
    for listener in host["sockets"]:
        with pytest.raises(BlockingIOError):
            listener.recv(1) if listener.type == socket.SOCK_DGRAM else listener.accept()


def in_function(lines: str, words: dict) -> str:
    body = lines.format_map(words) if "{" in lines else lines
    return f"def add(a, b):\n{textwrap.indent(body, '    ')}\n    return a + b\n"


@pytest.mark.parametrize("name", QUICK)
def test_attack_in_a_call(name, host, best):
    attack(host, best, in_function(QUICK[name], host["words"]))


@pytest.mark.parametrize("name", LONG)
def test_attack_that_never_ends(name, host, best):
    attack(host, best, in_function(LONG[name], host["words"]), SHORT_S)


@pytest.mark.parametrize("name", WHOLE)
def test_attack_while_loading(name, host, best):
    attack(host, best, WHOLE[name], 1.0)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.slow
def test_attack_in_a_call_at_level_landlock(name, host, landlock):
    if name == "thread bomb" and landlock.level is Level.LANDLOCK and os.getuid() != 0:
        pytest.skip("the kernel counts a user's tasks together, so only memory bounds threads at this level")
    attack(host, landlock, in_function(QUICK[name], host["words"]))


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.slow
def test_attack_while_loading_at_level_landlock(name, host, landlock):
    attack(host, landlock, WHOLE[name], 1.0)


def test_files_written_are_counted_when_the_program_is_done_too(landlock, monkeypatch):
    """The program may be done before anybody looks: no look happens while it runs here."""
    monkeypatch.setattr(sandbox_worker, "LOOK_SECONDS", 60.0)
    program = "for n in range(200): open(str(n), 'w').close()\n" + RIGHT
    outcome = run_tests(program, TESTS, 5.0, entry_point="add", pool=landlock, limits=LIMITS)
    assert (outcome.passed, outcome.fraction) == (False, 0.0) and "100 files written" in outcome.reason


FAMILY = {
    "fork bomb": "import os\nwhile True: os.fork()",
    "fork bomb that waits": "import os\nfor _ in range(99): os.fork() or os.kill(os.getpid(), 19)",
    "daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    os.fork()\n    time.sleep(60)\nreturn None",
    "kill everything": "import os\nfor _ in range(3): os.fork()\nos.kill(-1, 9)\nreturn None",
    "signals": "import os; os.fork(); os.kill({parent}, 10)",
    "binary": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true'], check=True)",
    "network in a child": "import os, socket\nif os.fork() == 0: socket.create_connection(('127.0.0.1', {port}), 1)\nreturn 0",
}


@pytest.mark.parametrize("name", FAMILY)
def test_whole_family_is_ended_where_processes_are_allowed(name, host, namespaces):
    limits = Limits(memory_bytes=2**28, tasks=20, processes=True)
    attack(host, namespaces, in_function(FAMILY[name], host["words"]), SHORT_S, limits)
