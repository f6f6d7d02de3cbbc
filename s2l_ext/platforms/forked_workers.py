"""Ray workers of a run on the CPU as forks of one process that has imported torch, verl and vLLM.

Ray starts every worker as a new Python, and each of a dozen spends 4 to 10 CPU seconds on the same imports. Ray's
``runtime_env.py_executable`` names the command that it starts workers with. Here that command is this file without
site-packages, a tenth of a second: it hands its arguments, environment and streams to the fork server and ends. The
server forks, and the child runs Ray's own ``default_worker.py``. Ray knows a worker by the id in its arguments.

Three processes run this file: the driver (:func:`start`), Ray's command (:func:`ask`) and the server (:func:`serve`).
Where the server does not answer, the command becomes a worker of the usual kind.
"""

import gc
import importlib
import json
import os
import runpy
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

BEFORE_RAY = ("torch", "tensordict", "transformers.generation", "pandas")
"""Imported at once. Ray reads its flags when it is imported: the rest waits for the environment of a worker."""

WITH_RAY = (
    "ray._private.workers.default_worker",
    "verl.experimental.agent_loop.agent_loop",
    "verl.workers.engine_workers",
    "verl.workers.rollout.vllm_rollout.vllm_async_server",
)
"""Imported in this order. Where that takes long, a worker has what came before it and imports the rest."""

IMPORT_SECONDS, PATIENCE_SECONDS = 10.0, 20.0
"""When the server answers though it has more to import, and when a command stops waiting: Ray waits 60 s for a worker,
and on a slow machine one import can take longer than that."""

OOM_SCORE = Path("/proc/self/oom_score_adj")

Request = dict[str, Any]
"""What a new process has from the one that starts it; three streams come with it."""

Asked = tuple[socket.socket, Request, list[int]]
"""Connection to the command, what it sent, and its three streams."""

_server: subprocess.Popen[bytes] | None = None


def start(environment: Mapping[str, str]) -> str:
    """Start the server, which ends with this process: the command for Ray's ``py_executable``. ``environment``:
    variables of every worker beside those of this process. Raises OSError: the temporary folder's path is too long for
    a socket, or it cannot be written."""
    global _server
    folder = Path(tempfile.mkdtemp(prefix="s2l-workers-"))
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(str(folder / "socket"))
        except OSError:
            folder.rmdir()
            raise
        listener.listen(64)
        _server = subprocess.Popen(
            [sys.executable, __file__, "serve", str(folder), str(listener.fileno())],
            stdin=subprocess.PIPE,  # ends when this process does, however that comes
            pass_fds=[listener.fileno()],
            env={**os.environ, **environment, "OMP_NUM_THREADS": "1"},
            start_new_session=True,  # Ctrl+C is the driver's
        )
    return shlex.join([sys.executable, "-I", "-S", __file__, "ask", str(folder)])


# ---- Ray's command -------------------------------------------------------------------------------------------------


def ask(folder: str, *arguments: str) -> None:
    """Have the server run ``python ARGUMENTS`` in this process's place, or become that."""
    request: Request = {
        "arguments": arguments,
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "niceness": os.getpriority(os.PRIO_PROCESS, 0),
        "oom_score": OOM_SCORE.read_text(),
    }
    with suppress(OSError), socket.socket(socket.AF_UNIX) as server:
        server.settimeout(PATIENCE_SECONDS)
        server.connect(str(Path(folder, "socket")))
        socket.send_fds(server, [json.dumps(request).encode() + b"\n"], [0, 1, 2])
        if server.recv(1):
            server.sendall(b"+")  # who had lost patience cannot say so: never two workers with one id
            return
    os.execv(sys.executable, [sys.executable, *arguments])  # noqa: S606


# ---- the server ----------------------------------------------------------------------------------------------------


def serve(folder: str, listener_fd: str) -> None:
    """Import, and fork for whoever asks, until standard input ends. In a child: run its worker."""
    del sys.path[0]  # the folder of this file
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # a child that ended leaves nothing behind
    gc.set_threshold(100_000, 50, 100)  # a step's rows are many small objects; 700 of them started a collection
    with socket.socket(fileno=int(listener_fd)) as listener:
        for connection, request, streams in _requests(listener, folder):
            if os.fork() == 0:
                listener.close()
                return _become(request, streams) if _wanted(connection) else os._exit(0)
            _close(connection.detach(), *streams)


def _requests(listener: socket.socket, folder: str) -> Iterator[Asked]:
    """Whoever asks, after the imports, or between them when they take long."""
    _import(*BEFORE_RAY)
    first = _next(listener, folder)
    os.environ.update(first[1]["environment"])
    asked, until = [first], time.monotonic() + IMPORT_SECONDS
    for name in WITH_RAY:
        _import(name)
        while time.monotonic() > until and (asked or select.select([listener], [], [], 0)[0]):
            yield asked.pop() if asked else _next(listener, folder)
    yield from asked
    while True:
        yield _next(listener, folder)


def _import(*names: str) -> None:
    for name in names:
        importlib.import_module(name)
    gc.freeze()  # a collection in a child would copy the pages that all share


def _next(listener: socket.socket, folder: str) -> Asked:
    """Wait for a request. Ends this process when the driver ends."""
    while True:
        if sys.stdin in select.select([sys.stdin, listener], [], [])[0]:
            shutil.rmtree(folder)
            os._exit(0)  # without what libraries print at the end of a process
        connection, request, streams = _read(listener)
        if request:
            return connection, request, streams
        _close(connection.detach(), *streams)


def _read(listener: socket.socket) -> Asked:
    """What one sends; an empty request from one that broke off."""
    connection, _ = listener.accept()
    text, streams, _, _ = socket.recv_fds(connection, 2**20, 3)
    while not text.endswith(b"\n"):
        more = connection.recv(2**20)
        if not more:
            return connection, {}, streams
        text += more
    return connection, json.loads(text), streams


def _close(*descriptors: int) -> None:
    for each in descriptors:
        os.close(each)


def _wanted(connection: socket.socket) -> bool:
    with suppress(OSError), connection:
        connection.sendall(b"+")
        return bool(connection.recv(1))
    return False


def _become(request: Request, streams: list[int]) -> None:
    """Be the process that Ray asked for."""
    for target, stream in enumerate(streams):
        os.dup2(stream, target)
    _close(*streams)
    os.setpgid(0, 0)
    os.setpriority(os.PRIO_PROCESS, 0, request["niceness"])
    OOM_SCORE.write_text(request["oom_score"])
    os.chdir(request["folder"])
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _set_environment(request["environment"])
    sys.argv[:] = request["arguments"]
    sys.path.insert(0, os.path.dirname(sys.argv[0]))
    runpy.run_path(sys.argv[0], run_name="__main__")


def _set_environment(environment: Mapping[str, str]) -> None:
    """And what libraries made of the variables that the server had."""
    import numpy
    import ray
    import torch
    from ray._raylet import Config

    from s2l_ext.platforms.patches import cpu as patches

    os.environ.clear()
    os.environ.update(environment)
    path = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [one for one in path if one and one not in sys.path]
    Config.initialize("")
    patches.tell_torch_of_its_threads(ray._private.utils)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    numpy.random.seed()  # Python's own generator does so by itself
    torch.seed()


if __name__ == "__main__":
    {"ask": ask, "serve": serve}[sys.argv[1]](*sys.argv[2:])
