"""Step time of `s2l train` with every feature off over verl's own `main_ppo`, alternating the two.

    python benchmarks/overhead.py --rounds 2 --steps 20 --out outputs/overhead

Both arms run the same composed configuration with the seeded agent loop (same tokens in both) and a replay buffer that
polls every 50 ms. The first steps of every launch are left out as warm-up. Prints and writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from tqdm import tqdm

WARM_UP_STEPS = 3
HERE = Path(__file__).resolve().parent


def overrides(steps: int) -> list[str]:
    return [
        f"trainer.total_training_steps={steps}",
        "trainer.val_before_train=false",
        "trainer.test_freq=-1",
        "s2l.rollout.poll_interval_s=null",
        "actor_rollout_ref.rollout.agent.default_agent_loop=s2l_seeded",
        f"trainer.v1.sampler.custom_sampler.path={HERE / 'fast_poll.py'}",
        "trainer.v1.sampler.custom_sampler.name=FastPollReplayBuffer",
    ]


def run(command: list[str], folder: Path, **environment: str) -> None:
    folder.mkdir(parents=True)
    with open(folder / "log.txt", "w") as log:
        done = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **environment})
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:4])} failed with exit code {done.returncode}; see {folder / 'log.txt'}")


def run_s2l(folder: Path, steps: int) -> list[dict]:
    arguments = ["--config-name", "grpo/toy", f"trainer.default_local_dir={folder}", *overrides(steps)]
    run([sys.executable, "-m", "s2l_ext.cli", "train", *arguments], folder)
    return _lines(folder / "metrics.jsonl")


def run_verl(folder: Path, composed: Path) -> list[dict]:
    arguments = [f"--config-path={composed}", "--config-name=s2l_config", "trainer.v1.trainer_mode=sync"]
    arguments += [f"trainer.default_local_dir={folder}", "trainer.logger=[console,file]"]
    environment = {"VERL_PLATFORM": "cpu", "VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")}
    run([sys.executable, "-m", "verl.trainer.main_ppo", *arguments], folder, **environment)
    return _lines(folder / "metrics.jsonl")


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def step_seconds(lines: list[dict]) -> list[float]:
    steps = {line["step"]: line["data"]["timing_s/step"] for line in lines if "timing_s/step" in line["data"]}
    return [seconds for step, seconds in sorted(steps.items()) if step > WARM_UP_STEPS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--out", type=Path, default=Path("outputs/overhead"))
    args = parser.parse_args()
    out = args.out.resolve()
    shutil.rmtree(out, ignore_errors=True)
    seconds: dict[str, list[float]] = {"s2l": [], "verl": []}
    rounds = []
    for index in tqdm(range(args.rounds), desc="rounds"):
        ours = step_seconds(run_s2l(out / f"s2l_{index}", args.steps))
        theirs = step_seconds(run_verl(out / f"verl_{index}", out / f"s2l_{index}"))
        seconds["s2l"] += ours
        seconds["verl"] += theirs
        rounds.append(statistics.median(ours) / statistics.median(theirs))
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    result = {
        "ratio": medians["s2l"] / medians["verl"],
        "ratio_by_round": rounds,
        "median_of_paired_step_ratios": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "median_step_seconds": medians,
        "steps_counted": {name: len(values) for name, values in seconds.items()},
    }
    (out / "overhead.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
