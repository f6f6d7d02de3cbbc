"""The sandbox's template process: behind its walls it forks one confined child per request.

Its parent sends ``fork`` (with the child's descriptors) and ``end``; sources, tests and inputs travel in descriptors
that the zygote never reads, so that no child finds another child's text in memory it inherited.
Standard library only: it runs in a bare interpreter that sees no installed packages.
"""

from __future__ import annotations

import contextlib
import fcntl
import gc
import json
import os
import random
import resource
import signal
import socket
import sys
import traceback
from typing import Any

from s2l_ext.sandbox import judge as sandbox_judge
from s2l_ext.sandbox import program as sandbox_program
from s2l_ext.sandbox import walls as sandbox_walls
from s2l_ext.sandbox.kernel import NEW_PID, PR_SET_DUMPABLE, prctl, setns, unshare

DESCRIPTORS = 1024
USUAL_IMPORTS = (
    "abc argparse array ast base64 bisect builtins calendar cmath collections collections.abc copy csv ctypes "
    "dataclasses datetime decimal dis enum fractions functools gzip hashlib heapq inspect io itertools json locale "
    "math numbers operator os pathlib pprint queue random re secrets shutil signal statistics string struct "
    "subprocess symtable sys tempfile textwrap threading time timeit tokenize traceback types typing unicodedata "
    "unittest uuid weakref zlib"
)


def main(text: str) -> None:
    """Enter the first walls that the kernel grants, say so, and serve until the parent closes the socket."""
    config = json.loads(text)
    control = socket.socket(fileno=config["control"])
    resource.setrlimit(resource.RLIMIT_NOFILE, (DESCRIPTORS, DESCRIPTORS))
    try:
        walls = _enter_first(config)
    except OSError as error:
        control.send(json.dumps({"refused": str(error)}).encode())
        return
    _warm_up(config["packages"])
    prctl(PR_SET_DUMPABLE, 0)
    control.send(json.dumps({"ready": walls.inner}).encode())
    zygote = Zygote(control, walls)
    with contextlib.suppress(OSError):
        zygote.serve()
    zygote.end()
    if walls.inner != "namespaces":
        sandbox_walls.empty(walls.scratch)
        os.rmdir(walls.scratch)


def _enter_first(config: dict[str, Any]) -> sandbox_walls.Walls:
    """Try each kind in a throw-away child first: half-entered namespaces cannot be left again."""
    reasons: list[str] = []
    for inner in config["inner"]:
        reason = _trial(inner, config) if len(config["inner"]) > 1 else ""
        if not reason:
            return sandbox_walls.enter(inner, config)
        reasons.append(f"{inner}: {reason}")
    raise OSError("; ".join(reasons))


def _trial(inner: str, config: dict[str, Any]) -> str:
    """Why walls of this kind cannot be entered here; empty when they can."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            sandbox_walls.enter(inner, config)
        except OSError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with open(reader, "rb") as file:
        reason = file.read().decode()
    os.waitpid(child, 0)
    return reason


def _warm_up(packages: list[str]) -> None:
    sys.path += packages
    for name in USUAL_IMPORTS.split():
        with contextlib.suppress(ImportError):
            __import__(name)
    gc.collect()
    gc.disable()
    gc.freeze()


class Zygote:
    """One job at a time: some children are forked, then all are ended together."""

    def __init__(self, control: socket.socket, walls: sandbox_walls.Walls) -> None:
        self.control = control
        self.walls = walls
        self.children: list[int] = []

    def serve(self) -> None:
        while True:
            data, descriptors, _, _ = socket.recv_fds(self.control, 1 << 16, 16)
            if not data:
                return
            request = json.loads(data)
            if request["do"] == "fork":
                self._fork(request, descriptors)
            else:
                self.control.send(json.dumps(self.end()).encode())

    def _fork(self, request: dict[str, Any], descriptors: list[int]) -> None:
        try:
            child = self._start(request, descriptors)
        except OSError as error:
            self.control.send(json.dumps({"failed": str(error)}).encode())
            return
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        self.children.append(child)
        handle = os.pidfd_open(child)
        socket.send_fds(self.control, [b'{"started": true}'], [handle])
        os.close(handle)

    def _start(self, request: dict[str, Any], descriptors: list[int]) -> int:
        """Fork, into a new PID namespace where there is one; the zygote itself stays in its own."""
        nested = self.walls.own_pids
        if nested is not None:
            unshare(NEW_PID)
        child = -1
        try:
            child = os.fork()
        finally:
            if child and nested is not None:
                setns(nested, NEW_PID)
        if child == 0:
            _run_child(self.walls, request, descriptors)
        return child

    def end(self) -> dict[str, Any]:
        statuses = []
        for child in self.children:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
            statuses.append(os.waitpid(child, 0)[1])
        self.children = []
        if self.walls.inner != "namespaces":
            sandbox_walls.empty(self.walls.scratch)
        return {"statuses": statuses}


def _run_child(walls: sandbox_walls.Walls, request: dict[str, Any], descriptors: list[int]) -> None:
    """Everything between fork and exit; never returns."""
    status = 1
    try:
        os.setsid()
        last = _place(walls, descriptors)
        if request["role"] == "program":
            sandbox_walls.private_mounts(walls, request["limits"])
        random.seed()
        gc.enable()
        sandbox_walls.confine(walls, request["limits"])
        os.write(last, b"+")
        os.close(last)
        if request["role"] == "program":
            status = sandbox_program.run(request["mode"])
        else:
            status = sandbox_judge.run(request["seconds"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def _place(walls: sandbox_walls.Walls, descriptors: list[int]) -> int:
    """Number the descriptors from 0, close all others, and return the number of the last."""
    wanted = descriptors + ([] if walls.ruleset is None else [walls.ruleset])
    high = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 100) for descriptor in wanted]
    for number, descriptor in enumerate(high):
        os.dup2(descriptor, number)
    os.closerange(len(high), DESCRIPTORS)
    if walls.ruleset is not None:
        walls.ruleset = len(descriptors)
    return len(descriptors) - 1
