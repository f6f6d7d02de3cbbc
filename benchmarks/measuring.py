"""What every benchmark shares: seconds, CPU seconds, memory, what else the machine did meanwhile, and JSON lines.

A ratio is printed only of measurements during which other processes used less than a quarter of a core: beside other
work two arms get unlike shares of the machine. CPU seconds are of this process and of those that it started.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[1]
BUSY_CORES = 0.25
MEGABYTE = 1e6


@dataclass
class Cost:
    """Of one measurement; ``peak_mb`` is resident memory of this process above what it held before, and
    ``other_cores`` how many cores other processes kept busy."""

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    peak_mb: float = 0.0
    other_cores: float = 0.0

    @property
    def busy(self) -> bool:
        return self.other_cores > BUSY_CORES


@contextmanager
def measured() -> Iterator[Cost]:
    """Fills in what the block cost when it has ended."""
    cost, before = Cost(), _resident("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again from what is resident
    machine, own, started = machine_cpu(), _own_cpu(), time.perf_counter()
    yield cost
    cost.seconds = time.perf_counter() - started
    cost.cpu_seconds = _own_cpu() - own
    cost.peak_mb = max(0.0, _resident("VmHWM") - before)
    cost.other_cores = max(0.0, (machine_cpu() - machine - cost.cpu_seconds) / cost.seconds)


def paired(arms: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[Cost]]:
    """Costs of each arm, round by round, after one that is not counted; every other round in the opposite order."""
    found: dict[str, list[Cost]] = {name: [] for name in arms}
    for number in range(rounds + 1):
        for name in list(arms)[:: -1 if number % 2 else 1]:
            with measured() as cost:
                arms[name]()
            if number:
                found[name].append(cost)
    return found


def median(costs: list[Cost]) -> Cost:
    """Field by field; ``other_cores`` is the largest."""
    middle = {name: statistics.median(getattr(cost, name) for cost in costs) for name in asdict(Cost())}
    return Cost(**(middle | {"other_cores": max(cost.other_cores for cost in costs)}))


def ratio(own: list[Cost], other: list[Cost], field: str = "seconds") -> dict[str, Any]:
    """Median of the pairs' ratios, or how busy the machine was in their place."""
    busy = max(cost.other_cores for cost in [*own, *other])
    if busy > BUSY_CORES:
        return {"busy": f"other processes used {busy:.1f} of {os.cpu_count()} cores: no ratio"}
    return {"ratio": statistics.median(getattr(a, field) / getattr(b, field) for a, b in zip(own, other, strict=True))}


def commit() -> str:
    """Of the working tree, with ``+`` where it has changes."""
    with suppress(OSError, subprocess.CalledProcessError):
        head = _git("rev-parse", "--short", "HEAD")
        return head + ("+" if _git("status", "--porcelain", "--untracked-files=no") else "")
    return "unknown"


def report(name: str, rows: list[dict[str, Any]], out: Path | None = None) -> None:
    """Print one JSON object a row, each with the benchmark's name and the commit; append them to ``out`` too."""
    marked = [{"benchmark": name, "commit": commit(), **row} for row in rows]
    lines = "".join(json.dumps(row) + "\n" for row in marked)
    print(lines, end="")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(out, "a") as file:
            file.write(lines)


def _git(*words: str) -> str:
    command = ["git", "-C", str(ROOT), *words]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def machine_cpu() -> float:
    """Seconds that all cores have worked since the machine started."""
    times = psutil.cpu_times()
    return sum(times) - times.idle - times.iowait - times.guest - times.guest_nice


def _own_cpu() -> float:
    total = 0.0
    for process in [me := psutil.Process(), *me.children(recursive=True)]:
        with suppress(psutil.Error):
            total += sum(process.cpu_times()[:2])
    return total + sum(me.cpu_times()[2:4])  # of children that have ended


def _resident(field: str) -> float:
    """MB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[field].split()[0]) * 1024 / MEGABYTE
