"""Does a long run grow? Hundreds of steps of the toy with every feature on; memory, handles and Ray's objects by step.

    python benchmarks/soak.py --steps 300

Prints a markdown table with slopes by least squares after a warm-up; exit code 1 when a process grows by more than the
limit, or the number of Ray's objects by more than one in ten steps. Private memory (USS); pages of Ray's object store
that were ever touched have a row of their own. Ray keeps a record of each of its last 100,000 tasks; ``--task-records``
lowers that for this run, so that the plateau lies within it.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
from tqdm import tqdm

from s2l_ext.toy import prepare

WARM_UP = 0.25
LIMIT_MIB, LIMIT_SHARE, LIMIT_HANDLES, LIMIT_OBJECTS = 32.0, 0.05, 8.0, 0.1
SECONDS = 5.0
FEATURES = (
    "data.train_batch_size=4",
    "data.train_max_samples=64",
    "data.seed=1",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "actor_rollout_ref.actor.kl_loss_type=low_var_kl",
    "+s2l.kl={type: accuracy, beta: 0.02}",
    "+s2l.curriculum={type: gaussian, center: 0.5, sigma: 0.35, ema: 0.9}",
    "s2l.explorer.mix_steps=450",
    "s2l.explorer.correction=truncated_is",
    "s2l.guidance.length.initial=24",
    "trainer.val_before_train=false",
    "trainer.test_freq=100",
    "trainer.save_freq=50",
    "trainer.max_actor_ckpt_to_keep=2",
)
Sample = tuple[int, float, int]
"""Step, private MiB, open handles."""
COUNTS = {
    "objects in Ray's store": ("debug_state.txt", "num local plasma objects"),
    "objects that Ray pins": ("debug_state.txt", "num pinned objects"),
    "Ray's task records": ("gcs_server.out", "Current num of task events stored"),
    "Ray's tasks so far": ("gcs_server.out", "Total num of actor tasks"),
}
"""Raylet and Ray's control store write these by themselves, every ten seconds and every minute."""


def launch(folder: Path, toy: Path, steps: int, task_records: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "s2l_ext.cli", "train", "--config-name", "combined/g2rpo_a_s2l", *FEATURES]
    command += [f"trainer.total_training_steps={steps}", f"trainer.default_local_dir={folder}"]
    with open(folder / "log.txt", "w") as log:
        bounded = {"RAY_task_events_max_num_task_in_gcs": str(task_records)}
        environment = {**os.environ, **bounded, "S2L_TOY_DIR": str(toy)}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment, cwd=folder)


def last_step(folder: Path) -> int:
    path = folder / "metrics.jsonl"
    if not path.exists():
        return 0
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return max((line["step"] for line in lines if "training/global_step" in line["data"]), default=0)


def family(root: psutil.Process) -> list[psutil.Process]:
    """The driver and its descendants; Ray's workers are children of its raylet, which is the driver's."""
    return [root, *root.children(recursive=True)]


def look(process: psutil.Process, step: int) -> tuple[str, Sample] | None:
    try:
        name = re.sub(r"[.\[( ].*", "", (process.cmdline() or [process.name()])[0].rpartition("/")[2])
        if process.name() in ("raylet", "gcs_server"):
            name = process.name()
        return f"{name} {process.pid}", (step, process.memory_full_info().uss / 2**20, process.num_fds())
    except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
        return None


def watch(run: subprocess.Popen, folder: Path, steps: int) -> dict[str, list[Sample]]:
    root, samples = psutil.Process(run.pid), defaultdict(list)
    with tqdm(total=steps, unit="step") as bar:
        while run.poll() is None:
            step = last_step(folder)
            bar.update(step - bar.n)
            for name, sample in look_at_all(root, step) if step else ():
                samples[name].append(sample)
            (folder / "samples.json").write_text(json.dumps(samples))
            time.sleep(SECONDS)
    return samples


def look_at_all(root: psutil.Process, step: int) -> Iterator[tuple[str, Sample]]:
    for process in family(root):
        found = look(process, step)
        if found:
            yield found
        if process.name() == "raylet":
            with contextlib.suppress(psutil.NoSuchProcess):
                shared = process.memory_info().shared / 2**20
                yield "object store, touched", (step, shared, 0)
            with contextlib.suppress(psutil.NoSuchProcess):
                yield from counts(session_logs(process), step)


def session_logs(raylet: psutil.Process) -> Path:
    return Path(next(word for word in raylet.cmdline() if word.startswith("--log_dir=")).partition("=")[2])


def counts(logs: Path, step: int) -> Iterator[tuple[str, Sample]]:
    """What Ray last said of itself; nothing where it has not yet."""
    for name, (file, words) in COUNTS.items():
        found = re.findall(rf"{words}: (\d+)", (logs / file).read_text()) if (logs / file).exists() else []
        if found:
            yield name, (step, float(found[-1]), 0)


def slope(points: list[Sample], column: int) -> float:
    """Per step, by least squares."""
    steps = np.array([point[0] for point in points], dtype=float)
    values = np.array([point[column] for point in points], dtype=float)
    return float(np.polyfit(steps, values, 1)[0]) if np.ptp(steps) > 0 else 0.0


def report(samples: dict[str, list[Sample]], steps: int) -> bool:
    """The table; whether everything is flat, and was there long enough to say so."""
    flat, told = True, 0
    print(
        "| process | samples | MiB at the end | KiB a step | growth over the run, MiB | handles at the end | growth |"
    )
    print("|---|---|---|---|---|---|---|")
    processes = {name: points for name, points in samples.items() if name not in COUNTS}
    for name, points in sorted(processes.items(), key=lambda item: -item[1][-1][1]):
        later = [point for point in points if point[0] >= WARM_UP * steps]
        if len(later) < 10:
            continue
        told += 1
        memory, handles = slope(later, 1), slope(later, 2)
        growth, opened = memory * steps, handles * steps
        limit = max(LIMIT_MIB, LIMIT_SHARE * later[-1][1])
        good = growth <= limit and opened <= LIMIT_HANDLES
        flat = flat and good
        mark = "" if good else " **grows**"
        print(
            f"| {name}{mark} | {len(later)} | {later[-1][1]:.0f} | {1024 * memory:+.1f} | {growth:+.1f} | "
            f"{later[-1][2]} | {opened:+.1f} |"
        )
    return flat and told > 0


def report_counts(samples: dict[str, list[Sample]], steps: int) -> bool:
    """A table of Ray's own counts; whether its objects are as many as before. Raises where Ray did not count them."""
    print("\n| count | at the end | most | a step |")
    print("|---|---|---|---|")
    flat = True
    for name in COUNTS:
        later = [point for point in samples[name] if point[0] >= WARM_UP * steps]
        values, growth = [value for _, value, _ in later], slope(later, 1)
        grows = "objects" in name and growth > LIMIT_OBJECTS
        flat = flat and not grows
        print(f"| {name}{' **grows**' if grows else ''} | {values[-1]:.0f} | {max(values):.0f} | {growth:+.2f} |")
    return flat


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--task-records", type=int, default=4000)
    parser.add_argument("--folder", type=Path, help="keep the run here")
    args = parser.parse_args()
    folder = args.folder or Path(tempfile.mkdtemp(prefix="s2l_soak_"))
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        print(f"--folder {folder} is not empty: a run in it would go on where it ended, with nothing left to watch")
        return 2
    toy = prepare(folder / "toy", sizes=("small", "medium")).root
    run = launch(folder, toy, args.steps, args.task_records)
    samples = watch(run, folder, args.steps)
    if run.returncode or last_step(folder) != args.steps:
        print((folder / "log.txt").read_text()[-4000:])
        print(f"the run ended with {run.returncode} after step {last_step(folder)}")
        return 1
    flat, counted = report(samples, args.steps), report_counts(samples, args.steps)
    return 0 if flat and counted else 1


if __name__ == "__main__":
    sys.exit(main())
