"""Processes of a run on this machine: when each starts, its CPU seconds to the first step and in a step, what it loads.

    python benchmarks/start_up.py --steps 6 --out outputs/start_up [-- OVERRIDE...]

Runs `s2l train --config-name s2l_po/toy` and reads /proc while it runs. CPU seconds are user plus system time; a step's
are the mean over the steps after the second. "Loads" are shared libraries of large packages in the process. A busy
machine lengthens seconds and hardly CPU seconds; its load is printed. Prints a table, writes start_up.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from measuring import MEGABYTE, machine_cpu

POLL_SECONDS = 0.1
FIRST_COUNTED = 3
PACKAGES = ("torch", "vllm", "pyarrow", "ray", "numpy", "pandas", "scipy", "sklearn", "cv2", "numba", "grpc")


@dataclass
class Seen:
    """One process: seconds after the launch, CPU seconds (user, system) now and at each step's end, packages."""

    name: str
    started: float
    now: tuple[float, float] = (0.0, 0.0)
    at: dict[int, tuple[float, float]] = field(default_factory=dict)
    loads: set[str] = field(default_factory=set)
    mb: float = 0.0


@dataclass
class Watched:
    """A run: processes by id, by step the seconds from the launch and the machine's CPU seconds at its end, and the
    most memory of all processes together (pages that several share counted once)."""

    seen: dict[int, Seen] = field(default_factory=dict)
    done: dict[int, float] = field(default_factory=dict)
    machine: dict[int, float] = field(default_factory=dict)
    peak_mb: float = 0.0


def title(process: psutil.Process) -> str:
    words = process.cmdline() or [process.name()]
    first = " ".join(words)
    if first.startswith("ray::"):
        return re.sub(r"\(.*|\..*", "", first.split()[0])
    if "s2l_ext.cli" in words:
        return f"driver ({words[words.index('s2l_ext.cli') + 1]})"
    script = next((Path(word).name for word in words[1:] if word.endswith(".py")), None)
    return script or Path(words[0]).name


def packages(pid: int) -> set[str]:
    text = Path(f"/proc/{pid}/maps").read_text()
    found = set(re.findall(r"site-packages/([a-z0-9_]+)", text))
    return {name for name in PACKAGES if name in found}


def memory(pid: int) -> float:
    """MB, its share of shared pages included."""
    found = re.search(r"^Pss:\s+(\d+)", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    return int(found.group(1)) * 1024 / MEGABYTE if found else 0.0


def look(root: psutil.Process, seen: dict[int, Seen], began: float, deep: bool) -> None:
    """Update ``seen`` from /proc; ``deep`` reads names, libraries and memory as well."""
    for one in seen.values() if deep else ():
        one.mb = 0.0
    for process in (root, *root.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in seen or deep:
                one = seen.setdefault(process.pid, Seen("", process.create_time() - began))
                one.name, one.loads = title(process), packages(process.pid) | one.loads
                one.mb = memory(process.pid)
            times = process.cpu_times()
            seen[process.pid].now = (times.user, times.system)


def steps_there(path: Path) -> list[int]:
    if not path.exists():
        return []
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    return [line["step"] for line in lines if "training/global_step" in line["data"]]


def watch(command: list[str], folder: Path, environment: Mapping[str, str] | None = None) -> Watched:
    """Run ``command``, which writes ``metrics.jsonl`` into the folder."""
    began, run, looked = time.time(), Watched(), 0.0
    with open(folder / "log.txt", "w") as log:
        process = psutil.Popen(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})})
        while process.poll() is None:
            deep = time.time() - looked > 2
            looked = time.time() if deep else looked
            with contextlib.suppress(psutil.NoSuchProcess):
                look(process, run.seen, began, deep)
            run.peak_mb = max(run.peak_mb, sum(one.mb for one in run.seen.values()))
            for step in steps_there(folder / "metrics.jsonl"):
                if step not in run.done:
                    run.done[step], run.machine[step] = time.time() - began, machine_cpu() - sum(os.times()[:2])
                    for one in run.seen.values():
                        one.at[step] = one.now
            time.sleep(POLL_SECONDS)
    if process.returncode:
        raise SystemExit(f"the run failed with exit code {process.returncode}; see {folder / 'log.txt'}")
    return run


def rows(seen: dict[int, Seen], last: int) -> list[dict]:
    """One row per kind of process, the most expensive start first."""
    kinds: dict[str, dict] = {}
    for one in seen.values():
        first, end = sum(one.at.get(1, one.now)), sum(one.at.get(last, one.now))
        base = sum(one.at.get(FIRST_COUNTED - 1, one.now))
        system = one.at.get(last, one.now)[1] - one.at.get(FIRST_COUNTED - 1, one.now)[1]
        row = kinds.setdefault(
            one.name,
            {"process": one.name, "number": 0, "starts": one.started, "start_cpu": 0.0, "step_cpu": 0.0, "system": 0.0},
        )
        row["number"] += 1
        row["start_cpu"] += first
        row["step_cpu"] += (end - base) / (last - FIRST_COUNTED + 1)
        row["system"] += system / (last - FIRST_COUNTED + 1)
        row["loads"] = sorted(one.loads | set(row.get("loads", ())))
    return sorted(kinds.values(), key=lambda row: -row["start_cpu"])


def table(found: list[dict]) -> str:
    lines = [
        "| process | number | starts at, s | CPU s to the first step | CPU s a step | of it system | loads |",
        "|---|---|---|---|---|---|---|",
    ]
    total: Counter[str] = Counter()
    for row in found:
        total.update({key: row[key] for key in ("number", "start_cpu", "step_cpu", "system")})
        if row["start_cpu"] + row["step_cpu"] > 0.2:
            lines.append(
                f"| {row['process']} | {row['number']} | {row['starts']:.1f} | {row['start_cpu']:.1f} | "
                f"{row['step_cpu']:.2f} | {row['system']:.2f} | {' '.join(row['loads'])} |"
            )
    lines.append(
        f"| all | {total['number']} | | {total['start_cpu']:.1f} | {total['step_cpu']:.2f} | {total['system']:.2f} | |"
    )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--recipe", default="s2l_po/toy")
    parser.add_argument("--out", type=Path, default=Path("outputs/start_up"))
    parser.add_argument("overrides", nargs="*")
    args = parser.parse_args()
    if args.steps < FIRST_COUNTED:
        raise SystemExit(f"--steps {args.steps}: a step's cost is measured from step {FIRST_COUNTED} on; give more.")
    folder = args.out.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "s2l_ext.cli", "train", "--config-name", args.recipe]
    command += [f"trainer.default_local_dir={folder}", f"trainer.total_training_steps={args.steps}"]
    load = os.getloadavg()[0]
    run = watch([*command, "trainer.test_freq=-1", *args.overrides], folder)
    found, done, last = rows(run.seen, args.steps), run.done, args.steps
    result = {
        "load_before": round(load, 2),
        "first_step_s": round(done[1], 1),
        "step_s": round((done[last] - done[FIRST_COUNTED - 1]) / (last - FIRST_COUNTED + 1), 2),
        "peak_mb": round(run.peak_mb),
        "processes": found,
    }
    (folder / "start_up.json").write_text(json.dumps(result, indent=1) + "\n")
    print(table(found))
    print(json.dumps({key: value for key, value in result.items() if key != "processes"}))


if __name__ == "__main__":
    main()
