"""The same toy by TRL, by this package's local loop, by verl alone, and by this package with all off and all on.

    s2l data toy --out outputs/toy --sizes small,medium,large
    python benchmarks/side_by_side.py --toy outputs/toy --trl-python trl_env/bin/python --out outputs/side_by_side
    python benchmarks/side_by_side.py --only verl off --rounds 2 --out outputs/side_by_side

Arms run one after the other, every other round in the opposite order; a later call with the same folder adds to the
table. How to make `trl_env` is in trl_toy.py; without it the arms of TRL are left out. Every arm is a process tree,
read from /proc as in start_up.py. A step is the mean over the steps from the third to the last but one (the last one
validates). CPU seconds are user plus system time. Beside other work no ratio is printed.

Set `OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind RAY_worker_niceness=0` for arms of equal rights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from measuring import BUSY_CORES, report
from start_up import FIRST_COUNTED, Watched, rows, watch

HERE = Path(__file__).resolve().parent
KL = ("actor_rollout_ref.actor.use_kl_loss=true", "actor_rollout_ref.actor.kl_loss_type=low_var_kl")
OPD = "sparse_to_dense/stages/opd"
BASIS = "verl"


def common(args: argparse.Namespace, folder: Path) -> list[str]:
    return [
        f"toy_dir={args.toy}",
        f"trainer.default_local_dir={folder}",
        f"trainer.total_training_steps={args.steps}",
        "trainer.val_before_train=false",
        f"trainer.test_freq={args.steps}",
    ]


def trl(args: argparse.Namespace, folder: Path, kind: str) -> list[str]:
    words = [str(args.trl_python), str(HERE / "trl_toy.py"), kind, "--toy", str(args.toy), "--out", str(folder)]
    return [*words, "--steps", str(args.steps), "--test-freq", str(args.steps), "--no-before"]


def local(args: argparse.Namespace, folder: Path, recipe: str) -> list[str]:
    words = [sys.executable, "-m", "s2l_ext.studies.local", "train", "--config-name", recipe]
    return [*words, *common(args, folder)]


def s2l(args: argparse.Namespace, folder: Path, recipe: str, *overrides: str) -> list[str]:
    return [sys.executable, "-m", "s2l_ext.cli", "train", "--config-name", recipe, *common(args, folder), *overrides]


def verl(args: argparse.Namespace, folder: Path, *overrides: str) -> list[str]:
    """verl's own command, trainer and workers, with the configuration of `grpo/toy`."""
    from omegaconf import OmegaConf

    from s2l_ext.launch.compose import compose_config
    from s2l_ext.platforms import activate_for

    cfg = compose_config("grpo/toy", [*common(args, folder), *overrides])
    activate_for(cfg)
    OmegaConf.save(cfg, folder / "composed.yaml")
    words = [sys.executable, "-m", "verl.trainer.main_ppo", f"--config-path={folder}", "--config-name=composed"]
    return [*words, "trainer.v1.trainer_mode=sync", "trainer.logger=[console,file]"]


def all_on(args: argparse.Namespace, folder: Path) -> list[str]:
    """Explorer in every step, guidance, KL by accuracy, curriculum, on the prompts of `grpo/toy`."""
    blocks = ["+s2l.kl={type: accuracy}", "+s2l.curriculum={type: gaussian}"]
    blocks.append(f"s2l.explorer.mix_steps={args.steps + 1}")
    files = [f"data.{name}_files={args.toy}/{name}.parquet" for name in ("train", "val")]
    return s2l(args, folder, "combined/g2rpo_a_s2l", *files, *KL, *blocks)


ARMS: dict[str, tuple[str, Callable[[argparse.Namespace, Path], list[str]]]] = {
    "trl": ("TRL, GRPOTrainer", lambda args, folder: trl(args, folder, "grpo")),
    "local": ("s2l_ext, local loop", lambda args, folder: local(args, folder, "grpo/toy")),
    "verl": ("verl alone", verl),
    "off": ("s2l_ext, all off", lambda args, folder: s2l(args, folder, "grpo/toy")),
    "verl_kl": ("verl alone, with its KL term", lambda args, folder: verl(args, folder, *KL)),
    "on": ("s2l_ext, all on", all_on),
    "trl_opd": ("TRL, DistillationTrainer", lambda args, folder: trl(args, folder, "distill")),
    "local_opd": ("s2l_ext, local loop, reverse KL", lambda args, folder: local(args, folder, OPD)),
    "opd": ("s2l_ext, reverse KL", lambda args, folder: s2l(args, folder, OPD)),
}
"""By name: what the table says, and the command."""
OF_TRL = ("trl", "trl_opd")


def measure(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    command, load = ARMS[name][1](args, folder), os.getloadavg()[0]
    environment = {"VERL_FILE_LOGGER_PATH": str(folder / "metrics.jsonl")} if BASIS in name else {}
    if name.startswith("trl"):  # TRL's environment has no s2l_ext, whose reward it takes
        environment["PYTHONPATH"] = str(HERE.parent)
    run = watch(command, folder, environment)
    (folder / "processes.json").write_text(json.dumps(rows(run.seen, args.steps - 1), indent=1))
    return {"arm": name, "load_before": round(load, 2), **costs(run, args.steps), "accuracy": accuracy(folder)}


def costs(run: Watched, steps: int) -> dict[str, Any]:
    """Of a run whose last step validates."""
    first, last = FIRST_COUNTED - 1, steps - 1
    number, seconds = last - first, run.done[last] - run.done[first]

    def cpu(step: int) -> float:
        return sum(sum(one.at.get(step, (0.0, 0.0))) for one in run.seen.values())

    own = cpu(last) - cpu(first)
    return {
        "steps": steps,
        "processes": len(run.seen),
        "first_step_s": round(run.done[1], 1),
        "first_step_cpu_s": round(cpu(1), 1),
        "step_s": round(seconds / number, 2),
        "step_cpu_s": round(own / number, 3),
        "peak_mb": round(run.peak_mb),
        "other_cores": round(max(0.0, (run.machine[last] - run.machine[first] - own) / seconds), 2),
    }


def accuracy(folder: Path) -> float | None:
    """The last one that the run wrote, on held-out problems."""
    found = None
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        for key, value in json.loads(line)["data"].items():
            if key.startswith("val-core/") and "/acc/mean@" in key:
                found = float(value)
    return found


def table(lines: list[dict[str, Any]]) -> str:
    """One row an arm, medians over its runs; CPU seconds a step over those of verl alone where nothing else ran."""
    titles = "| arm | runs | s to the first step | CPU s to it | s a step | CPU s a step | of verl's | peak MB |"
    found = [f"{titles} accuracy after | other cores |", "|---" * 10 + "|"]
    for name, (title, _) in ARMS.items():
        own = [line for line in lines if line["arm"] == name]
        if not own:
            continue
        cells = [f"{_median(own, key):.{digits}f}" for key, digits in (("first_step_s", 0), ("first_step_cpu_s", 0))]
        cells += [f"{_median(own, 'step_s'):.1f}", f"{_median(own, 'step_cpu_s'):.2f}", _ratio(name, lines)]
        cells += [f"{_median(own, 'peak_mb'):.0f}", _all(own, "accuracy", 2), _all(own, "other_cores", 1)]
        found.append(f"| {title} | {len(own)} | {' | '.join(cells)} |")
    return "\n".join(found)


def _ratio(name: str, lines: list[dict[str, Any]]) -> str:
    own, basis = ([line for line in lines if line["arm"] == arm] for arm in (name, BASIS))
    if not basis or name == BASIS or "opd" in name:
        return ""
    if max(line["other_cores"] for line in own + basis) > BUSY_CORES:
        return "busy"
    return f"{_median(own, 'step_cpu_s') / _median(basis, 'step_cpu_s'):.3f}"


def _median(lines: list[dict[str, Any]], key: str) -> float:
    return statistics.median(float(line[key]) for line in lines)


def _all(lines: list[dict[str, Any]], key: str, digits: int) -> str:
    return ", ".join(f"{line[key]:.{digits}f}" for line in lines if line[key] is not None)


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--toy", type=Path, default=Path("outputs/toy"), help="folder that s2l data toy made")
    parser.add_argument("--trl-python", type=Path, help="python of TRL's environment")
    parser.add_argument("--out", type=Path, default=Path("outputs/side_by_side"))
    args = parser.parse_args(words)
    if args.steps <= FIRST_COUNTED:
        raise SystemExit(f"--steps {args.steps}: steps from {FIRST_COUNTED} to the last but one count; give more.")
    args.toy, args.out = args.toy.resolve(), args.out.resolve()
    if not (args.toy / "models" / "large").exists():
        raise SystemExit(f"--toy {args.toy}: no models there. s2l data toy --out {args.toy} --sizes small,medium,large")
    if args.trl_python is None:
        args.only = [name for name in args.only if name not in OF_TRL]
    return args


def main() -> None:
    args = arguments()
    lines_file = args.out / "side_by_side.jsonl"
    for number in range(args.rounds):
        for name in args.only[:: -1 if number % 2 else 1]:
            print(f"side by side: {name}, round {number + 1}", file=sys.stderr)
            report("side_by_side", [measure(name, args, args.out / name)], lines_file)
    print(table([json.loads(line) for line in lines_file.read_text().splitlines()]))


if __name__ == "__main__":
    main()
