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

from s2l_ext.data.toy.cache import pretrained_folder
from s2l_ext.data.toy.world import write_files
from s2l_ext.evaluation.engines import Machine, Request, Sampling, VLLMEngine
from s2l_ext.explore.pools import LocalPool, Placement, Setup
from s2l_ext.explore.run import Exploration, explore

REQUIRED = 0.95
Timed = tuple[int, float]
"""Response tokens, seconds."""


class KeptPool(LocalPool):
    """The engine stays for the next round; what it was asked is what the plain loop asks."""

    requests: list[Request]

    def draw(self, requests):
        self.requests = list(requests)
        return super().draw(self.requests)

    def close(self) -> None:
        pass


class Rounds:
    """The three loops over one engine."""

    def __init__(self, job: Exploration) -> None:
        self.job, self.pool, self.started = job, None, 0.0

    def opened(self, setup: Setup, placement: Placement) -> KeptPool:
        self.pool = self.pool or KeptPool(setup.engine())
        self.started = time.perf_counter()
        return self.pool

    def explored(self) -> Timed:
        shutil.rmtree(self.job.out, ignore_errors=True)
        drawn = explore(self.job, progress=True, open_engines=self.opened)
        return drawn.tokens, time.perf_counter() - self.started

    def plain(self, log_probs: bool = True) -> Timed:
        engine: VLLMEngine = self.pool.engine
        prompts = [{"prompt_token_ids": request.prompt_ids} for request in self.pool.requests]
        engine.log_probs = log_probs
        parameters = [engine._params(request) for request in self.pool.requests]
        engine.log_probs = True
        started = time.perf_counter()
        outputs = engine.llm.generate(prompts, parameters, use_tqdm=True)
        return sum(len(output.outputs[0].token_ids) for output in outputs), time.perf_counter() - started

    def plain_without(self) -> Timed:
        return self.plain(log_probs=False)


def measure(loops: dict[str, Callable[[], Timed]], repeats: int) -> dict[str, list[float]]:
    """Tokens per second of each loop, round by round; every other round in the opposite order."""
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for count in range(repeats + 1):
        for name in list(loops) if count % 2 == 0 or count == 0 else list(loops)[::-1]:
            tokens, seconds = loops[name]()
            if count:
                speeds[name].append(tokens / seconds)
    return speeds


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
        speeds = measure(loops, args.repeats)
    return report(speeds, load)


def report(speeds: dict[str, list[float]], load: float) -> int:
    """Medians, ranges, and the median of each round's ratio."""
    own = speeds["s2l explore"]
    print(f"| loop | tokens/s, median (range) | s2l explore against it | load before: {load:.1f} |\n|---|---|---|---|")
    for name, each in speeds.items():
        ratio = statistics.median(mine / other for mine, other in zip(own, each, strict=True))
        print(f"| {name} | {statistics.median(each):.0f} ({min(each):.0f} to {max(each):.0f}) | {ratio:.3f} | |")
    ratio = statistics.median(mine / other for mine, other in zip(own, speeds["LLM.generate"], strict=True))
    if ratio < REQUIRED:
        print(f"s2l explore is at {ratio:.3f} of LLM.generate, below {REQUIRED}", file=sys.stderr)
    return 0 if ratio >= REQUIRED else 1


if __name__ == "__main__":
    sys.exit(main())
