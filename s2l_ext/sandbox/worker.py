"""One zygote seen from outside: starts it, hands it descriptors, watches a job, and ends everything the job started."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import socket
import subprocess
import tempfile
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from s2l_ext.errors import ResourceError
from s2l_ext.sandbox.levels import ENVIRONMENT, Level, command
from s2l_ext.sandbox.walls import PRIVATE, empty

START_SECONDS = 30.0
END_SECONDS = 10.0
GRACE_SECONDS = 1.0
TAIL_CHARS = 4000
LOOK_SECONDS = 0.1


class SandboxUnavailable(ResourceError):
    """Untrusted programs cannot be run here as safely as configured."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one program, in bytes: address space of each process (``memory_bytes``) and the private folder
    (``scratch_bytes``).

    ``tasks`` are threads and processes together, where the kernel can count them apart from the user's own.
    ``processes`` allows fork and exec (only at level ``namespaces`` or above; denied elsewhere).
    """

    memory_bytes: int = 2**30
    file_bytes: int = 16 * 2**20
    scratch_bytes: int = 64 * 2**20
    scratch_files: int = 1024
    output_bytes: int = 2**20
    open_files: int = 64
    tasks: int = 64
    processes: bool = False


@dataclass
class Finished:
    """What a job left behind. ``reason`` is empty when it ended by itself; ``status`` is a script's wait status."""

    stdout: str = ""
    stderr: str = ""
    status: int | None = None
    reason: str = ""
    seconds: float = 0.0
    verdict: dict[str, Any] = field(default_factory=dict)


class Worker:
    """A running zygote. Not thread-safe. Every failure of the sandbox itself is an OSError."""

    def __init__(self, level: Level, packages: list[str]) -> None:
        self.level = level
        self._own_folder = level <= Level.LANDLOCK
        self._scratch = tempfile.mkdtemp(prefix="s2l-sandbox-") if self._own_folder else f"{PRIVATE}/s2l"
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(START_SECONDS)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115
        self._process: subprocess.Popen[bytes] | None = None
        self.inner = "namespaces"
        try:
            with theirs:
                self._process = subprocess.Popen(
                    command(level, theirs.fileno(), self._scratch, packages),
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._log,
                    pass_fds=[theirs.fileno()],
                    env=ENVIRONMENT,
                    cwd="/",
                    start_new_session=True,
                )
            hello = self._receive()[0]
            if "ready" not in hello:
                raise OSError(hello.get("refused", f"unexpected greeting {hello}"))
            self.inner = hello["ready"]
        except BaseException:
            self.close()
            raise

    def _receive(self) -> tuple[dict[str, Any], list[int]]:
        data, descriptors, _, _ = socket.recv_fds(self._control, 1 << 16, 1)
        if not data:
            self._log.seek(0)
            raise OSError(f"the zygote ended: {_tail(self._log.read(), 500).strip() or 'it left no message'}")
        return json.loads(data), descriptors

    def run(self, source: str, given: str | dict[str, Any], timeout_s: float, limits: Limits) -> Finished:
        """Run ``source`` as a script with ``given`` as its input, or judge its functions by the tests of ``given``."""
        with contextlib.ExitStack() as stack:
            job = _Job(self, stack, timeout_s, limits)
            nothing = job.own(os.open(os.devnull, os.O_RDWR))
            out, err, text = job.pipe("out"), job.pipe("err"), job.text(source)
            if isinstance(given, str):
                script = [job.text(given), out, err, nothing, text, job.ready]
                return job.finish(job.fork("program", script, mode="script"))
            ours, theirs = (job.own(end.detach()) for end in socket.socketpair())
            judge = [nothing, nothing, nothing, ours, job.text(json.dumps(given)), job.pipe("verdict"), job.ready]
            watched = job.fork("judge", judge, seconds=timeout_s)
            job.fork("program", [nothing, out, err, theirs, text, job.ready], mode="functions")
            return job.finish(watched)

    def fork(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Start one child; returns a descriptor that is readable once the child has ended."""
        socket.send_fds(self._control, [json.dumps({"do": "fork", **request}).encode()], descriptors)
        reply, handles = self._receive()
        if not handles:
            raise OSError(reply.get("failed", "the zygote could not fork"))
        return handles[0]

    def end(self) -> list[int]:
        """Kill what is left of the job; returns the wait statuses of its children."""
        self._control.settimeout(END_SECONDS)
        self._control.send(b'{"do": "end"}')
        return list(self._receive()[0]["statuses"])

    def over_scratch(self, limits: Limits) -> str:
        """What to say of a private folder that holds too much, where no file system of its own bounds it."""
        if not self._own_folder:
            return ""
        size = count = 0
        folders = [self._scratch]
        while folders and size <= limits.scratch_bytes and count <= limits.scratch_files:
            with contextlib.suppress(OSError), os.scandir(folders.pop()) as entries:
                for entry in entries:
                    count += 1
                    size += entry.stat(follow_symlinks=False).st_blocks * 512
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        over = size > limits.scratch_bytes or count > limits.scratch_files
        return f"more than {limits.scratch_bytes} bytes or {limits.scratch_files} files written" if over else ""

    def close(self) -> None:
        """End the zygote and everything behind its walls."""
        self._control.close()
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):  # with no PID namespace it cleans up after itself
                self._process.wait(0.5 if self.inner == "namespaces" else END_SECONDS)
            self._process.kill()
            self._process.wait()
        self._log.close()
        if self._own_folder:
            with contextlib.suppress(OSError):
                empty(self._scratch)
                os.rmdir(self._scratch)


class _Job:
    """The descriptors of one job and the loop that watches them."""

    def __init__(self, worker: Worker, stack: contextlib.ExitStack, timeout_s: float, limits: Limits) -> None:
        self._worker = worker
        self._stack = stack
        self._limits = {**asdict(limits), "cpu_s": math.ceil(timeout_s) + 1}
        self.bounds = limits
        self.timeout_s = timeout_s
        self._theirs = contextlib.ExitStack()
        self._readers: dict[str, int] = {}
        self._open: dict[int, bytearray] = {}
        self._forked = 0
        stack.callback(self._theirs.close)
        self.ready = self.pipe("ready")

    def own(self, descriptor: int) -> int:
        self._theirs.callback(os.close, descriptor)
        return descriptor

    def pipe(self, name: str) -> int:
        """The end to write into of a new pipe, which is read under this name."""
        reader, writer = os.pipe()
        self._stack.callback(os.close, reader)
        os.set_blocking(reader, False)
        self._readers[name], self._open[reader] = reader, bytearray()
        return self.own(writer)

    def text(self, text: str) -> int:
        """A file in memory that holds ``text``."""
        descriptor = self.own(os.memfd_create("s2l"))
        with open(os.dup(descriptor), "wb") as file:
            file.write(text.encode(errors="surrogatepass"))
        os.lseek(descriptor, 0, os.SEEK_SET)
        return descriptor

    def fork(self, role: str, descriptors: list[int], **request: Any) -> int:
        handle = self._worker.fork({"role": role, "limits": self._limits, **request}, descriptors)
        self._stack.callback(os.close, handle)
        self._forked += 1
        return handle

    def finish(self, watched: int) -> Finished:
        self._theirs.close()
        self._wait_until_ready(watched)
        started = time.monotonic()
        reason = self._watch(watched, started + self.timeout_s) or self._worker.over_scratch(self.bounds)
        seconds = time.monotonic() - started
        statuses = self._worker.end()
        streams = {name: self._drain(reader) for name, reader in self._readers.items()}
        verdict: dict[str, Any] = {}
        with contextlib.suppress(ValueError):  # cut short, or none
            verdict = dict(json.loads(streams.get("verdict", b"")))
        said = _tail(streams["err"])
        if len(streams["ready"]) < self._forked and "malformed" not in verdict:
            raise OSError(f"a child could not be confined: {said}")
        return Finished(streams["out"].decode(errors="replace"), said, statuses[0], reason, seconds, verdict)

    def _wait_until_ready(self, watched: int) -> None:
        """Let every child finish confining itself; it costs the program none of its time."""
        deadline = time.monotonic() + START_SECONDS
        poller = select.poll()
        poller.register(watched, select.POLLIN)
        ready = self._readers["ready"]
        poller.register(ready, select.POLLIN)
        while len(self._open[ready]) < self._forked and time.monotonic() < deadline:
            for descriptor, _ in poller.poll(1000 * LOOK_SECONDS):
                if descriptor == watched or not self._read(descriptor):
                    return

    def _watch(self, watched: int, deadline: float) -> str:
        """Read until the watched child ends; returns why it was cut short, if it was."""
        poller = select.poll()
        for descriptor in [watched, *self._open]:
            poller.register(descriptor, select.POLLIN)
        if "verdict" in self._readers:
            deadline += GRACE_SECONDS
        look = 0.0
        while (now := time.monotonic()) < deadline:
            for descriptor, _ in poller.poll(1000 * min(deadline - now, LOOK_SECONDS)):
                if descriptor == watched:
                    return ""
                if not self._read(descriptor):
                    poller.unregister(descriptor)
                if len(self._open.get(descriptor, b"")) > self.bounds.output_bytes:
                    return f"more than {self.bounds.output_bytes} bytes of output"
            if now > look + LOOK_SECONDS:
                look = now
                if over := self._worker.over_scratch(self.bounds):
                    return over
        return "out of time"

    def _read(self, descriptor: int) -> bool:
        """Take what is there; False at the end of the stream."""
        try:
            data = os.read(descriptor, 1 << 16)
        except BlockingIOError:
            return True
        self._open[descriptor] += data
        return bool(data)

    def _drain(self, descriptor: int) -> bytearray:
        data = self._open[descriptor]
        while len(data) <= self.bounds.output_bytes:
            before = len(data)
            if not self._read(descriptor) or len(data) == before:
                break
        return data


def _tail(data: bytearray | bytes, chars: int = TAIL_CHARS) -> str:
    return data[-chars:].decode(errors="replace")
