"""What to run first on a GPU, in order of value; each step says PASS or FAIL, and the next one runs all the same.

    python benchmarks/gpu_check.py [--only grpo,resume] [--out outputs/gpu_check]          (make gpu-check)

Runs in a clone, with the environment that the package is installed in (`pip install ".[gpu]"` and pytest). Each step is
a process of its own with a time limit and a log, `OUT/<step>.log`; what it leaves behind is ended. `OUT/summary.json`
and the table at the end are what docs/gpu.md wants. Exits with 2 without a GPU, with 1 if a step failed.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import run_supervised

REPOSITORY = Path(__file__).resolve().parents[1]
TOY = Path(os.environ.setdefault("S2L_TOY_DIR", "outputs/toy"))
RUNS = Path("outputs/gpu_check")
"""Where the recipes of recipes/gpu_check write."""
S2L = (sys.executable, "-m", "s2l_ext.cli")
EVAL = ("--data", str(TOY / "test.parquet"), "--limit", "64", "--max-tokens", "64", "--out", str(RUNS / "eval.json"))
GAP, GAP_OF_ALL_ROWS = "s2l/source/learner/kl_sampler_learner_k3", "rollout_corr/k3_kl"
MOST_GAP = 0.01
"""Nats per token between vLLM and the learner, both in bfloat16; a kernel or a weight sync that is wrong gives more."""

Metrics = dict[int, dict[str, float | None]]


@dataclass(frozen=True)
class Step:
    """``wrong``: what speaks against a step that exited with 0; nothing when it passed."""

    name: str
    command: Sequence[str]
    limit_s: int
    wrong: Callable[[], str] = str


def steps() -> list[Step]:
    """In the order in which a short time on a GPU is spent best."""
    here = REPOSITORY / "benchmarks"
    model = str(TOY / "models" / "medium")
    beta, length, divergence = "s2l/kl/beta", "s2l/guidance/length", "s2l/distill/reverse_kl"
    return [
        Step("environment", (*S2L, "doctor"), 120),
        Step("losses", (sys.executable, str(here / "gpu_divergences.py")), 180),
        Step("loss tests", (sys.executable, "-m", "pytest", "-q", "-m", "gpu", "tests/gpu"), 180),
        Step("toy world", (*S2L, "data", "toy", "--out", str(TOY)), 600),
        Step("vllm", (sys.executable, str(here / "gpu_vllm.py"), model), 180),
        Step("eval", (*S2L, "eval", "--model", model, *EVAL), 180),
        _train("grpo", 4, lambda _: ""),
        _train("s2l_po", 4, _explorer_leaves),
        _train("expo", 3, partial(_positive, beta)),
        _train("g2rpo_a", 3, partial(_positive, length)),
        _train("opd", 3, partial(_positive, divergence), has_gap=False),  # no old log-probabilities are computed
        Step("resume", _words("grpo", "trainer.total_training_steps=6"), 300, _resumed),
    ]


def _words(recipe: str, *overrides: str) -> tuple[str, ...]:
    return *S2L, "train", "--config-name", f"gpu_check/{recipe}", *overrides


def _train(recipe: str, count: int, more: Callable[[Metrics], str], has_gap: bool = True) -> Step:
    def wrong() -> str:
        found = read(recipe)
        if sorted(found) != list(range(1, count + 1)):
            return f"steps {sorted(found)}, expected 1 to {count}"
        return (_gap(found) if has_gap else "") or more(found)

    return Step(recipe, _words(recipe, "trainer.resume_mode=disable"), 300, wrong)


# ---- what a good run shows ------------------------------------------------------------------------------------------


def read(recipe: str) -> Metrics:
    """Metrics of a run's training steps, by step; without a file none."""
    path = RUNS / recipe / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    return {line["step"]: line["data"] for line in lines if line["step"] > 0}


def _gap(found: Metrics) -> str:
    """Sampler and learner compute the same log-probabilities of the learner's rows."""
    keys = {step: GAP if "s2l/source/learner/rows" in data else GAP_OF_ALL_ROWS for step, data in found.items()}
    gaps = [_number(data, keys[step]) for step, data in found.items() if keys[step] in data]
    if gaps and all(gap <= MOST_GAP for gap in gaps):
        return ""
    return f"sampler and learner are {gaps} nats per token apart, expected {MOST_GAP} at most"


def _number(data: dict[str, float | None], key: str) -> float:
    """metrics.jsonl has null where a number was not finite."""
    value = data.get(key)
    return math.nan if value is None else value


def _explorer_leaves(found: Metrics) -> str:
    want = [LinearAnnealing(mix_steps=4, group_size=8).slots(step) for step in found]
    got = [data["s2l/explorer/rollouts_per_group"] for data in found.values()]
    return "" if got == want else f"the explorer sampled {got} of 8 rollouts, expected {want}"


def _positive(key: str, found: Metrics) -> str:
    values = [_number(data, key) for data in found.values()]
    return "" if all(value >= 0 for value in values) and any(values) else f"{key} is {values}, expected more than 0"


def _resumed() -> str:
    """The first four steps are those of the run before, second by second; two new ones follow."""
    found, before = read("grpo"), _before.get("grpo", {})
    kept = {step: data for step, data in found.items() if step in before}
    if not before or kept != before or sorted(found) != [1, 2, 3, 4, 5, 6]:
        return f"steps {sorted(found)}, the first 4 {'kept' if kept == before else 'made again'}: expected 5 and 6 more"
    return ""


_before: dict[str, Metrics] = {}


# ---- running --------------------------------------------------------------------------------------------------------


def run(step: Step, out: Path) -> dict[str, object]:
    """Run one step to its end or limit, print its line, and return what the summary says of it."""
    log, began = out / f"{step.name.replace(' ', '_')}.log", time.monotonic()
    log.unlink(missing_ok=True)
    print(f"{step.name} ...", flush=True)

    def in_time() -> None:
        if time.monotonic() - began > step.limit_s:
            raise TimeoutError

    try:
        code = run_supervised(step.command, log, in_time).returncode
        wrong = f"exit code {code}" if code else step.wrong()
    except TimeoutError:
        wrong = f"not finished after {step.limit_s} s"
    except (KeyError, OSError, ValueError) as error:
        wrong = f"its metrics cannot be read: {error!r}"
    seconds = time.monotonic() - began
    if wrong:
        print("\n".join(last_lines(log, 15)))
    print(f"{'FAIL' if wrong else 'PASS'} {step.name} ({seconds:.0f} s){f': {wrong}. Log: {log}' if wrong else ''}")
    return {"step": step.name, "passed": not wrong, "seconds": round(seconds, 1), "wrong": wrong}


def describe() -> dict[str, object]:
    """Card, versions and commit, for the record."""
    from importlib.metadata import version

    import torch

    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, cwd=REPOSITORY)  # noqa: S607
    packages = {name: version(name) for name in ("verl", "vllm", "ray", "torch", "transformers")}
    return {"card": torch.cuda.get_device_name(), "commit": commit.stdout.strip() or None, "packages": packages}


def main() -> int:
    """0: all passed; 1: a step failed; 2: no GPU, or no such step."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="STEP,...", help="these steps alone, in the order of the list")
    parser.add_argument("--out", type=Path, default=RUNS / "logs", metavar="DIR", help="logs and summary.json")
    args = parser.parse_args()
    listed = {step.name: step for step in steps()}
    wanted = args.only.split(",") if args.only else list(listed)
    if unknown := [name for name in wanted if name not in listed]:
        print(f"gpu-check: --only {unknown[0]}: no such step. Steps: {', '.join(listed)}.", file=sys.stderr)
        return 2
    if not torch.cuda.is_available():
        print(
            f"gpu-check: torch {torch.__version__} sees no GPU here, so nothing was run. On a GPU machine: install "
            'the package with `pip install ".[gpu]"`, and look at `s2l doctor` and `nvidia-smi`.',
            file=sys.stderr,
        )
        return 2
    return check([step for name, step in listed.items() if name in wanted], args.out)


def check(chosen: list[Step], out: Path) -> int:
    facts, results = describe(), []
    for step in chosen:
        if step.name == "resume":
            _before["grpo"] = read("grpo")
        results.append(run(step, out))
        (out / "summary.json").write_text(json.dumps({**facts, "steps": results}, indent=1) + "\n")
    failed = [str(result["step"]) for result in results if not result["passed"]]
    print(json.dumps(facts))
    for result in results:
        word = "PASS" if result["passed"] else "FAIL"
        print(f"| {result['step']} | {word} | {result['seconds']} s | {result['wrong']} |")
    print(f"gpu-check: {len(results) - len(failed)} of {len(results)} passed; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
