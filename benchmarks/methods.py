"""Do the sampling methods learn more than GRPO where GRPO has little to learn from? The toy's tier 2, several seeds.

    python benchmarks/methods.py --seeds 1 2 3 --out outputs/methods

Arms of one seed share prompts, start weights and the seed of every request. Held-out accuracy: two sampled answers to
each of 256 problems. Finished runs are kept, and a second call goes on where the first one ended.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from s2l_ext.evaluation.seeds import FEWEST_SEEDS, over_seeds
from s2l_ext.toy import prepare

ARMS = {
    "GRPO": "grpo/toy",
    "S2L-PO": "s2l_po/toy",
    "G2RPO-A": "g2rpo_a/toy",
    "S2L-PO and G2RPO-A": "combined/g2rpo_a_s2l",
}
BASE = "GRPO"
BEFORE = "before training"


def train(recipe: str, seed: int, steps: int, tier: int, folder: Path, toy: Path) -> list[dict]:
    """The lines of one run's metrics.jsonl."""
    if not (folder / "done").exists():
        folder.mkdir(parents=True, exist_ok=True)
        words = [
            f"--config-name={recipe}",
            f"data.train_files=${{toy_dir}}/train_tier{tier}.parquet",
            f"data.val_files=${{toy_dir}}/val_tier{tier}.parquet",
            f"data.seed={seed}",
            f"actor_rollout_ref.rollout.seed={seed}",
            "actor_rollout_ref.rollout.agent.default_agent_loop=s2l_seeded",
            "actor_rollout_ref.rollout.val_kwargs.n=2",
            f"trainer.total_training_steps={steps}",
            f"trainer.test_freq={max(1, steps // 4)}",
            "trainer.resume_mode=disable",
            f"trainer.default_local_dir={folder}",
            f"trainer.validation_data_dir={folder / 'validation'}",
        ]
        with open(folder / "log.txt", "w") as log:
            command = [sys.executable, "-m", "s2l_ext.cli", "train", *words]
            environment = {**os.environ, "S2L_TOY_DIR": str(toy)}
            if subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env=environment).returncode:
                raise SystemExit(f"a run failed; see {folder / 'log.txt'}")
        (folder / "done").touch()
    return [json.loads(line)["data"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def accuracies(lines: list[dict]) -> list[float]:
    """Held-out accuracy at every validation."""
    names = {name for line in lines for name in line if name.startswith("val-core/") and "/acc/mean@" in name}
    (name,) = names
    return [line[name] for line in lines if name in line]


def _interval(values: list[float]) -> tuple[float, float]:
    """Mean and half-width of its 95 % interval over seeds; no width for one."""
    if len(values) < FEWEST_SEEDS:
        return values[0], math.nan
    found = over_seeds(values)
    return found.mean, found.ci95[1] - found.mean


def table(results: dict[str, list[list[float]]]) -> str:
    """Markdown: means with 95 % intervals over seeds, the difference to GRPO paired by seed."""
    rows = ["| method | held-out accuracy | paired difference to GRPO | by seed |", "|---|---|---|---|"]
    ends = {BEFORE: [run[0] for run in results[BASE]]}
    ends |= {arm: [run[-1] for run in runs] for arm, runs in results.items()}
    for arm, last in ends.items():
        mean, half = _interval(last)
        difference, spread = _interval([mine - base for mine, base in zip(last, ends[BASE], strict=True)])
        paired = "" if arm == BASE else f"{difference:+.3f} ± {spread:.3f}"
        rows.append(f"| {arm} | {mean:.3f} ± {half:.3f} | {paired} | {', '.join(f'{value:.3f}' for value in last)} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--tier", type=int, default=2, choices=range(4))
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path("outputs/methods"))
    args = parser.parse_args()
    out, jobs = args.out.resolve(), list(itertools.product(args.seeds, ARMS))

    toy = prepare(out / "toy", sizes=("small", "medium")).root

    def one(job: tuple[int, str]) -> list[float]:
        seed, arm = job
        folder = out / f"{arm.replace(' ', '_')}_seed_{seed}"
        return accuracies(train(ARMS[arm], seed, args.steps, args.tier, folder, toy))

    with ThreadPoolExecutor(args.jobs) as pool:
        curves = list(tqdm(pool.map(one, jobs), total=len(jobs), desc="runs"))
    results = {arm: [curve for (_, name), curve in zip(jobs, curves, strict=True) if name == arm] for arm in ARMS}
    (out / "results.json").write_text(json.dumps({"steps": args.steps, "seeds": args.seeds, **results}, indent=1))
    print(table(results))


if __name__ == "__main__":
    main()
