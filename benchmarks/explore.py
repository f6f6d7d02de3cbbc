"""Tokens per second of `s2l explore` against a plain `vllm.LLM.generate` on the same requests, with one engine.

    python benchmarks/explore.py --limit 64 --n 8 --max-tokens 64 --repeats 5

Timed is all from the first request to the finished store: drawing, grading, journal, shards, checksums. The plain
loop hands the same requests with the same sampling parameters to the same engine, in turn, and throws the answers away.
A third loop, for information, does not ask for log-probabilities. Each is warmed up once. Exit code 1 below 0.95.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from s2l_ext.evaluation.engines import Machine, Request, Sampling, Setup, VLLMEngine
from s2l_ext.explore.run import Exploration, Placement, explore
from s2l_ext.toy.cache import pretrained_folder
from s2l_ext.toy.world import write_files

REQUIRED = 0.95
Timed = tuple[int, float, float]
"""Response tokens, seconds, and CPU seconds of the main thread, which steadies on a busy machine."""
Start = tuple[float, float]


class KeptPool:
    """The engine stays for the next round; what it was asked is what the plain loop asks."""

    requests: list[Request]

    def __init__(self, engine: VLLMEngine) -> None:
        self.engine = engine

    def draw(self, requests):
        self.requests = list(requests)
        return self.engine.draw(self.requests)

    def close(self) -> None:
        pass


class Rounds:
    """The three loops over one engine."""

    def __init__(self, job: Exploration) -> None:
        self.job, self.pool, self.started = job, None, now()

    def opened(self, setup: Setup, placement: Placement) -> KeptPool:
        self.pool = self.pool or KeptPool(setup.engine())
        self.started = now()
        return self.pool

    def explored(self) -> Timed:
        shutil.rmtree(self.job.out, ignore_errors=True)
        drawn = explore(self.job, progress=True, open_engines=self.opened)
        return drawn.tokens, *since(self.started)

    def plain(self, log_probs: bool = True) -> Timed:
        engine: VLLMEngine = self.pool.engine
        prompts = [{"prompt_token_ids": request.prompt_ids} for request in self.pool.requests]
        engine.log_probs = log_probs
        parameters = [engine._params(request) for request in self.pool.requests]
        engine.log_probs = True
        started = now()
        outputs = engine.llm.generate(prompts, parameters, use_tqdm=True)
        return sum(len(output.outputs[0].token_ids) for output in outputs), *since(started)

    def plain_without(self) -> Timed:
        return self.plain(log_probs=False)


def now() -> Start:
    return time.perf_counter(), time.thread_time()


def since(start: Start) -> tuple[float, float]:
    return time.perf_counter() - start[0], time.thread_time() - start[1]


def measure(loops: dict[str, Callable[[], Timed]], repeats: int) -> dict[str, list[Timed]]:
    """What each loop took, round by round; every other round in the opposite order."""
    found: dict[str, list[Timed]] = {name: [] for name in loops}
    for count in range(repeats + 1):
        for name in list(loops)[:: -1 if count % 2 else 1]:
            timed = loops[name]()
            if count:
                found[name].append(timed)
    return found


def toy(folder: Path, limit: int) -> tuple[str, Path]:
    return str(pretrained_folder("small", 0)), write_files(folder, 0, {"train": limit, "val": 2, "test": 2})["train"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="default: the small toy model")
    parser.add_argument("--data", type=Path, help="verl parquet; default: toy tasks")
    parser.add_argument("--limit", type=int, default=64)
    parser.add_argument("--n", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        model, data = (args.model, args.data) if args.model and args.data else toy(Path(folder), args.limit)
        sampling = dataclasses.replace(Sampling(temperature=0.7), n=args.n, max_tokens=args.max_tokens)
        job = Exploration(model, (data,), Path(folder) / "store", sampling, Machine(), limit=args.limit)
        rounds = Rounds(job)
        loops = {
            "s2l explore": rounds.explored,
            "LLM.generate": rounds.plain,
            "LLM.generate, no log-probs": rounds.plain_without,
        }
        found = measure(loops, args.repeats)
    return report(found, load)


def report(found: dict[str, list[Timed]], load: float) -> int:
    """Medians, ranges, and the median of each round's ratio."""
    speeds = {name: [tokens / seconds for tokens, seconds, _ in each] for name, each in found.items()}
    ratios = {name: against(speeds["s2l explore"], each) for name, each in speeds.items()}
    print(f"load before: {load:.1f}\n")
    print("| loop | tokens/s, median (range) | s2l explore against it | main thread's CPU ms a token |")
    print("|---|---|---|---|")
    for name, each in speeds.items():
        cpu = statistics.median(1000 * cpu / tokens for tokens, _, cpu in found[name])
        span = f"{statistics.median(each):.0f} ({min(each):.0f} to {max(each):.0f})"
        print(f"| {name} | {span} | {ratios[name]:.3f} | {cpu:.3f} |")
    if ratios["LLM.generate"] < REQUIRED:
        print(f"s2l explore is at {ratios['LLM.generate']:.3f} of LLM.generate, below {REQUIRED}", file=sys.stderr)
    return 0 if ratios["LLM.generate"] >= REQUIRED else 1


def against(own: list[float], other: list[float]) -> float:
    return statistics.median(mine / theirs for mine, theirs in zip(own, other, strict=True))


if __name__ == "__main__":
    sys.exit(main())
