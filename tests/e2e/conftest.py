"""Real runs on this machine: Ray, FSDP2, vLLM and TransferQueue with tiny models. Launches are shared by tests."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import psutil
import pytest

LAUNCH_TIMEOUT_S = 900
CRASH = re.compile(r"^.*(SIG[A-Z]+ received|Check failed|Fatal Python error|terminate called)", re.MULTILINE)
"""How Ray, glibc and CPython begin to report one."""
SMALL_RUN = (
    "data.train_batch_size=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.agent.default_agent_loop=s2l_seeded",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in Path(item.fspath).parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class Launch:
    """One training process and what it left behind."""

    folder: Path
    process: subprocess.Popen
    log_path: Path
    seen: list[psutil.Process] = field(default_factory=list)
    listened: set[tuple[str, str]] = field(default_factory=set)
    """Name of a process and address that it listened at, as :meth:`look_who_listens` saw them."""

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    @property
    def end_of_log(self) -> str:
        """The first report of a crash, which hundreds of lines can follow, and what was said last."""
        log = self.log
        crash = CRASH.search(log)
        start = log[crash.start() : crash.start() + 3000] + "\n[…]\n" if crash else ""
        return start + log[-6000:]

    def wait(self, timeout: float = LAUNCH_TIMEOUT_S) -> "Launch":
        try:
            code = self.process.wait(timeout)
        finally:
            self.end()
        assert code == 0, f"exit code {code}\n{self.end_of_log}"
        return self

    def wait_for(self, condition, timeout: float = LAUNCH_TIMEOUT_S) -> None:
        deadline = time.monotonic() + timeout
        while not condition():
            assert self.process.poll() is None, f"ended early with {self.process.returncode}\n{self.end_of_log}"
            assert time.monotonic() < deadline, f"still waiting after {timeout} s\n{self.end_of_log}"
            time.sleep(0.2)

    def look_who_listens(self) -> None:
        names = {}
        for process in [psutil.Process(self.process.pid), *_descendants(self.process.pid)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                names[process.pid] = process.name()
        open_ = [one for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN and one.pid in names]
        self.listened = {(names[one.pid], one.laddr.ip) for one in open_}

    def kill_9(self) -> None:
        """SIGKILL the driver alone, as the out-of-memory killer would, then clear away what it orphaned."""
        self.seen = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(60)
        time.sleep(5)
        self.end()

    def kill_9_after_checkpoint(self, step: int) -> None:
        """SIGKILL once the checkpoint of ``step`` is complete; a run that got much further would prove nothing."""
        tracker = self.folder / "latest_checkpointed_iteration.txt"
        self.wait_for(lambda: tracker.exists() and tracker.read_text().strip() == str(step))
        self.kill_9()
        assert max(self.steps(), default=0) <= step + 2, "the kill came too late"

    def end(self) -> None:
        for process in self.seen or _descendants(self.process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if self.process.poll() is None:
            self.process.kill()

    def lines(self) -> list[dict]:
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return []
        return [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]

    def steps(self) -> dict[int, dict]:
        """Training metrics by step."""
        return {line["step"]: line["data"] for line in self.lines() if "training/global_step" in line["data"]}

    def draws(self) -> dict[int, dict]:
        """Lines of the curriculum by step."""
        lines = [json.loads(line) for line in (self.folder / "curriculum.jsonl").read_text().splitlines()]
        assert len({line["step"] for line in lines}) == len(lines)
        return {line["step"]: line for line in lines}


def _descendants(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


@pytest.fixture(scope="session")
def toy_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy world with its small and medium models; built once per machine, then cached."""
    from s2l_ext.toy import prepare

    return prepare(tmp_path_factory.mktemp("toy"), sizes=("small", "medium")).root


def neighbour(name: str) -> ModuleType:
    """A file beside this one: with pytest's import mode tests cannot import their neighbours."""
    spec = importlib.util.spec_from_file_location(f"s2l_e2e_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def clusters() -> ModuleType:
    return neighbour("cluster")


@pytest.fixture(scope="session")
def saved_rows() -> ModuleType:
    return neighbour("saved_rows")


@pytest.fixture(scope="session")
def small_run() -> tuple[str, ...]:
    return SMALL_RUN


@pytest.fixture(scope="session")
def launch(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator:
    """Start a training process: ``launch("s2l_po/toy", "a.b=1")``; ``module`` chooses another entry point."""
    started: list[Launch] = []

    def start(config: str, *overrides: str, folder: Path | None = None, command: list[str] | None = None) -> Launch:
        folder = folder or tmp_path_factory.mktemp("run")
        command = command or [sys.executable, "-m", "s2l_ext.cli", "train", "--config-name", config]
        log_path = folder / f"log_{len(started)}.txt"
        environment = {**os.environ, "S2L_TOY_DIR": str(toy_dir), "RAY_DEDUP_LOGS": "0"}
        with open(log_path, "w") as log:
            process = subprocess.Popen(
                [*command, f"trainer.default_local_dir={folder}", *overrides],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                cwd=folder,
            )
        started.append(Launch(folder, process, log_path))
        return started[-1]

    yield start
    for run in started:
        run.end()


@pytest.fixture(scope="session")
def kill_and_resume(launch) -> Callable:
    """SIGKILL once the checkpoint of step 2 is complete, then the same command: steps before the kill, and the run."""

    def run(config: str, *overrides: str, command: list[str] | None = None) -> tuple[dict[int, dict], Launch]:
        first = launch(config, *overrides, command=command)
        first.kill_9_after_checkpoint(2)
        before = first.steps()
        return before, launch(config, *overrides, folder=first.folder, command=command).wait()

    return run
