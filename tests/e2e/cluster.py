"""A Ray cluster of several nodes on this machine: real raylets with folders, ports and a token of their own."""

import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

HOST = "127.0.0.1"
START_SECONDS = 120
JOINING = ("ray_kwargs.ray_init.num_cpus=null", "ray_kwargs.ray_init.num_gpus=null")
"""What a toy recipe needs to join a cluster: the sizes of one of its own taken back."""
PYTHON_FIRST = f"{Path(sys.executable).parent}:{os.environ['PATH']}"


def free_port() -> int:
    with socket.socket() as one:
        one.bind((HOST, 0))
        return int(one.getsockname()[1])


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"no {what} after {seconds:.0f} s"
        time.sleep(0.3)


class Cluster:
    """``add`` nodes, ``kill`` them, ``submit`` jobs. ``environment`` is what a program needs to talk to it.

    Its token is a file of its own: clusters of one user would otherwise share ``~/.ray/auth_token``.
    """

    def __init__(self, folder: Path, **variables: str) -> None:
        self.folder = folder
        self.gcs = f"{HOST}:{free_port()}"
        self.address = f"http://{HOST}:{free_port()}"
        self.token = secrets.token_hex(32)
        (folder / "token").write_text(self.token)
        own = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token"), "PATH": PYTHON_FIRST}
        frugal = {"RAY_num_workers_soft_limit": "1", "RAY_memory_usage_threshold": "0.98"}  # three nodes, one memory
        self.environment = {**os.environ, **own, **frugal, "RAY_DEDUP_LOGS": "0", **variables}
        self.environment.pop("RAY_ADDRESS", None)
        self.started: dict[str, subprocess.Popen[bytes]] = {}

    # ---- nodes ----------------------------------------------------------------------------------------------

    def add(self, name: str, labels: Mapping[str, str] | None = None, gpus: int = 1, cpus: int = 16) -> None:
        """Start a node and wait until the cluster has it; the first one is the head."""
        words = ["ray", "start", "--block", f"--node-name={name}", f"--num-gpus={gpus}", f"--num-cpus={cpus}"]
        words += [f"--temp-dir={self.folder / name}", f"--dashboard-agent-listen-port={free_port()}"]
        words += ["--labels", ",".join(f"{key}={value}" for key, value in labels.items())] if labels else []
        with open(self.folder / f"{name}.log", "w") as log:
            process = subprocess.Popen(
                words + (self._joining() if self.started else self._head()),
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started[name] = process
        wait_until(lambda: name in self.nodes() or process.poll() is not None, START_SECONDS, f"node {name}")
        assert process.poll() is None, (self.folder / f"{name}.log").read_text()

    def _head(self) -> list[str]:
        ports = [f"--port={self.gcs.rpartition(':')[2]}", f"--dashboard-port={self.address.rpartition(':')[2]}"]
        return ["--head", *ports, f"--ray-client-server-port={free_port()}", "--disable-usage-stats"]

    def _joining(self) -> list[str]:
        return [f"--address={self.gcs}"]

    def nodes(self) -> dict[str, str]:
        """Ray's state of every node, ALIVE or DEAD, by name; empty while the job server does not answer."""
        try:
            rows = self._get("/api/v0/nodes?limit=100")["data"]["result"]["result"]
        except OSError:
            return {}
        return {row["node_name"]: row["state"] for row in rows}

    def kill(self, name: str) -> None:
        """SIGKILL a node's raylet, as if the machine had gone; returns when the cluster has noticed."""
        for process in psutil.Process(self.started[name].pid).children(recursive=True):
            if process.name() == "raylet":
                process.send_signal(signal.SIGKILL)
        wait_until(lambda: self.nodes().get(name) == "DEAD", 90, f"death of node {name}")

    def processes(self) -> list[psutil.Process]:
        """Everything that this cluster started: it has the token's path in its environment."""
        return [one for one in psutil.process_iter() if _started_with(one, str(self.folder / "token"))]

    def end(self) -> None:
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        for process in self.started.values():
            process.wait(30)

    # ---- jobs -----------------------------------------------------------------------------------------------

    def run(self, *words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, env=self.environment, cwd=self.folder, capture_output=True, text=True, timeout=timeout
        )

    def submit(self, *words: str, timeout: float = 900) -> subprocess.CompletedProcess[str]:
        command = (sys.executable, "-m", "s2l_ext.cli", "submit", "--address", self.address)
        return self.run(*command, *words, timeout=timeout)

    def state(self, job: str) -> str:
        return str(self._get(f"/api/jobs/{job}")["status"])

    def _get(self, path: str) -> dict:
        asked = urllib.request.Request(self.address + path, headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.load(answer)


def _started_with(process: psutil.Process, token_path: str) -> bool:
    try:
        return process.environ().get("RAY_AUTH_TOKEN_PATH") == token_path
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return False


@contextmanager
def local_cluster(**variables: str) -> Iterator[Cluster]:
    """An empty cluster; its folder is short because sockets have short names."""
    folder = Path(tempfile.mkdtemp(prefix="s2l_ray_", dir="/tmp"))
    cluster = Cluster(folder, **variables)
    try:
        yield cluster
    finally:
        cluster.end()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def three_nodes(**variables: str) -> Iterator[Cluster]:
    """Two nodes labelled for the learner, the head among them, and one for the explorer; one logical GPU each."""
    with local_cluster(**variables) as cluster:
        cluster.add("head", {"pool": "learner"})
        cluster.add("second", {"pool": "explorer"})
        cluster.add("third", {"pool": "learner"})
        yield cluster
