"""Time and memory of the Gaussian curriculum against the obvious numpy version, on one core.

    python benchmarks/curriculum.py
    python benchmarks/curriculum.py --num-prompts 10000000 --repeats 200

One step is draw(1024) and update(1024). Prints markdown tables; exits with 1 if ten million prompts need more than
200 MB, or more than 5 ms (median) a step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
import tracemalloc
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

from s2l_ext.methods.curriculum import gaussian as module
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum

STEP_SIZE = 1024
SIZES = [2 * STEP_SIZE, 10**4, 10**5, 10**6, 10**7]
LIMIT_FROM = 10**7
LIMIT_MS = 5.0
LIMIT_MB = 200.0
NUMPY_MAX_REPEATS = 5
NUMPY_REPEATS_BELOW = 10**5
MEGABYTE = 1e6


class Obvious:
    """``rng.choice`` over all prompts."""

    def __init__(self, num_prompts: int, sigma: float) -> None:
        self.rates = np.full(num_prompts, 0.5)
        self.sigma = sigma

    def draw(self, n: int, rng: np.random.Generator) -> np.ndarray:
        weights = np.exp(-((self.rates - 0.5) ** 2) / (2 * self.sigma**2))
        return rng.choice(self.rates.size, n, replace=False, p=weights / weights.sum())

    def update(self, indices: np.ndarray, pass_rates: np.ndarray) -> None:
        self.rates[indices] = 0.9 * self.rates[indices] + 0.1 * pass_rates


class Measured(NamedTuple):
    """Of one way of drawing: milliseconds a step, and megabytes beyond the arrays at the peak of a step."""

    median_ms: float
    p95_ms: float
    extra_mb: float


def spread(num_prompts: int) -> np.ndarray:
    """Pass rates all over [0, 1]."""
    return np.random.default_rng(0).random(num_prompts)


def bimodal(num_prompts: int) -> np.ndarray:
    """Pass rates as late in training: all are 0 or 1 but 500, fewer than a step draws."""
    rates = np.round(spread(num_prompts))
    rates[:: num_prompts // 500] = 0.5
    return rates


RATES: dict[str, Callable[[int], np.ndarray]] = {"spread": spread, "bimodal": bimodal}


def curriculum_of(rates: np.ndarray, sigma: float) -> GaussianCurriculum:
    curriculum = GaussianCurriculum(rates.size, sigma=sigma)
    curriculum.pass_rates.rates[:] = rates
    return curriculum


def measure(curriculum: GaussianCurriculum | Obvious, repeats: int, step_size: int = STEP_SIZE) -> Measured:
    """The first step is not counted."""
    rng = np.random.default_rng(1)
    one_step(curriculum, rng, step_size)
    milliseconds = [1e3 * one_step(curriculum, rng, step_size) for _ in range(repeats)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    one_step(curriculum, rng, step_size)
    extra = tracemalloc.get_traced_memory()[1] - before
    tracemalloc.stop()
    return Measured(statistics.median(milliseconds), float(np.quantile(milliseconds, 0.95)), extra / MEGABYTE)


def one_step(curriculum: GaussianCurriculum | Obvious, rng: np.random.Generator, step_size: int) -> float:
    observed = rng.integers(0, 9, step_size) / 8
    start = time.perf_counter()
    curriculum.update(curriculum.draw(step_size, rng), observed)
    return time.perf_counter() - start


def state_bytes(curriculum: GaussianCurriculum) -> int:
    return curriculum.pass_rates.rates.nbytes + curriculum.pass_rates.visits.nbytes


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


# ---- tables -------------------------------------------------------------------------------------------------------


def steps_table(sizes: list[int], repeats: int) -> list[str]:
    """Prints one line per size and kind of pass rates; returns those over the limits."""
    cases = [("spread", 0.35), ("spread", 0.05), ("bimodal", 0.35), ("bimodal", 0.05)]
    lines = [
        f"| prompts | pass rates, sigma | curriculum, ms a step: median, p95 | numpy: median, p95 | state, MB | extra "
        f"at the peak of a step, MB | numpy's extra, MB |\n|{'---|' * 7}"
    ]
    failures = []
    for size in tqdm(sizes, desc="sizes"):
        for name, sigma in cases:
            curriculum, obvious = curriculum_of(RATES[name](size), sigma), Obvious(size, sigma)
            ours = measure(curriculum, repeats)
            obvious.rates[:] = RATES[name](size)
            theirs = measure(obvious, repeats if size <= NUMPY_REPEATS_BELOW else NUMPY_MAX_REPEATS)
            state = state_bytes(curriculum) / MEGABYTE
            lines.append(
                f"| {size:,} | {name}, {sigma} | {ours.median_ms:.2f}, {ours.p95_ms:.2f} | {theirs.median_ms:.2f}, "
                f"{theirs.p95_ms:.2f} | {state:.2f} | {ours.extra_mb:.2f} | {theirs.extra_mb:.2f} |"
            )
            if size >= LIMIT_FROM and (ours.median_ms > LIMIT_MS or state + ours.extra_mb > LIMIT_MB):
                failures.append(lines[-1])
    print("\n".join(lines))
    return failures


def crossover_table(repeats: int) -> None:
    """Proposals and keys over prompts per drawn prompt, whichever the curriculum would choose."""
    print(f"\n| n | N / n | proposals, ms a step | keys, ms a step |\n|{'---|' * 4}")
    chosen = module.REJECTION_FROM
    for step_size in (256, 1024):
        for ratio in (2, 4, 8, 16, 32, 64):
            times = []
            for module.REJECTION_FROM in (0, sys.maxsize):
                times.append(measure(curriculum_of(spread(ratio * step_size), 0.35), repeats, step_size).median_ms)
            print(f"| {step_size} | {ratio} | {times[0]:.2f} | {times[1]:.2f} |")
    module.REJECTION_FROM = chosen
    print(f"\nThe curriculum proposes prompts from N / n = {chosen}.")


def whole_passes(size: int) -> None:
    curriculum = curriculum_of(spread(size), 0.35)
    print(f"\n| {size:,} prompts | seconds |\n|---|---|")
    tracemalloc.start()
    curriculum.metrics()
    extra = tracemalloc.get_traced_memory()[1] / MEGABYTE
    tracemalloc.stop()
    metrics = statistics.median(seconds(curriculum.metrics) for _ in range(5))
    print(f"| metrics() ({extra:.1f} MB extra) | {metrics:.3f} |")
    print(f"| bucket_mass() | {seconds(curriculum.bucket_mass):.3f} |")
    print(f"| state_dict() (copies) | {seconds(curriculum.state_dict):.3f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--num-prompts", type=int, nargs="+", default=SIZES)
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    failures = steps_table(args.num_prompts, args.repeats)
    crossover_table(args.repeats)
    whole_passes(max(args.num_prompts))
    if failures:
        sys.exit(f"over {LIMIT_MS} ms or {LIMIT_MB} MB:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
