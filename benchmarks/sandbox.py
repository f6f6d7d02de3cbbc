"""Programs graded per second: the 164 canonical solutions of HumanEval, their tests included.

    python benchmarks/sandbox.py --rounds 3 --workers 2 --level namespaces

Prints a markdown table; exit code 1 when the median round is below 40 programs a second or a solution fails.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from s2l_ext.rewards.code import Outcome, run_tests
from s2l_ext.sandbox.levels import parse_level
from s2l_ext.sandbox.runner import Level, Sandbox

REQUIRED = 40.0
TIMEOUT_S = 20.0
ROWS = Path(__file__).parents[1] / "tests" / "fixtures" / "humaneval.jsonl"


def one_round(rows: list[dict], pool: Sandbox, threads: ThreadPoolExecutor) -> tuple[float, list[Outcome]]:
    def grade(row: dict) -> Outcome:
        program = row["prompt"] + row["canonical_solution"]
        entry_point, prompt = row["entry_point"], row["prompt"]
        return run_tests(program, row["test"], TIMEOUT_S, entry_point=entry_point, prompt=prompt, pool=pool)

    started = time.perf_counter()
    outcomes = list(tqdm(threads.map(grade, rows), total=len(rows), leave=False))
    return len(rows) / (time.perf_counter() - started), outcomes


def cpu_seconds() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def measure(level: Level | None, workers: int, rounds: int) -> bool:
    rows = [json.loads(line) for line in ROWS.read_text(encoding="utf-8").splitlines()]
    before, load = cpu_seconds(), os.getloadavg()[0]
    pool = Sandbox(level, workers=workers)
    with ThreadPoolExecutor(workers) as threads:
        results = [one_round(rows, pool, threads) for _ in range(rounds)]
    pool.close()
    speeds = [speed for speed, _ in results]
    passed = min(sum(each.passed for each in outcomes) for _, outcomes in results)
    cpu = f"{1000 * (cpu_seconds() - before) / (rounds * len(rows)):.1f}"
    if pool.level is Level.BUBBLEWRAP:
        cpu = "not counted"
    print(
        f"| {pool.level.name.lower()} | {workers} | {passed} of {len(rows)} | {statistics.median(speeds):.0f} "
        f"({min(speeds):.0f} to {max(speeds):.0f}) | {cpu} | {load:.1f} |"
    )
    return passed == len(rows) and statistics.median(speeds) >= REQUIRED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--level", action="append", help="may be repeated; default: the highest that works")
    arguments = parser.parse_args()
    print("| level | workers | passed | programs/s, median (range) | CPU ms per program | load before |")
    print("|---|---|---|---|---|---|")
    levels = [parse_level(each) for each in arguments.level] if arguments.level else [None]
    good = [measure(level, arguments.workers, arguments.rounds) for level in levels]
    if not all(good):
        print(f"below {REQUIRED:.0f} programs a second, or a canonical solution failed", file=sys.stderr)
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
