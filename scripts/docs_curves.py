"""Draws docs/images/watch_*.png: a good and a bad toy run of each method, 16 steps, by the local engine (no Ray).

``python scripts/docs_curves.py`` needs `s2l data toy --out outputs/toy --sizes small,medium,large`,
runs what is missing in outputs/curves (30 to 65 s of one core a run) and draws.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
RUNS, IMAGES = Path("outputs/curves"), ROOT / "docs" / "images"
COMMON = ["trainer.total_training_steps=16", "trainer.test_freq=2", "data.val_max_samples=96"]
LR = "actor_rollout_ref.actor.optim.lr"
HELD_OUT, SCORE, LENGTH, NORM = "val-core", "critic/score/mean", "response tokens a row", "actor/grad_norm"


@dataclass(frozen=True)
class Pair:
    """``bad``, ``both``, ``good``: overrides. ``watched``: metric -> title, the two that the method adds."""

    recipe: str
    bad: list[str]
    watched: dict[str, str]
    both: list[str] = field(default_factory=list)
    good: list[str] = field(default_factory=list)


PAIRS = {
    "grpo": Pair(
        "grpo/toy", [f"{LR}=3e-3"], {"actor/pg_loss": "policy loss", "perf/total_num_tokens": "tokens a step"}
    ),
    "s2l_po": Pair(
        "s2l_po/toy",
        ["s2l.explorer.schedule=constant", f"{LR}=1e-3"],
        {"s2l/explorer/rollouts_per_group": "explorer rows of a group of 8", "actor/pg_loss": "policy loss"},
    ),
    "expo": Pair(
        "expo/toy",
        ["s2l.kl.beta=1.0", "s2l.curriculum.sigma=0.02"],
        {"s2l/kl/beta": "KL coefficient", "actor/kl_loss": "KL to the reference, nats a token"},
    ),
    "g2rpo_a": Pair(
        "g2rpo_a/toy",
        ["s2l.guidance.alpha=1.0", "s2l.guidance.length={type: constant, initial: 48, max_length: 48}"],
        {"s2l/guidance/length": "guidance length, tokens", "actor/pg_loss": "policy loss"},
        ["data.train_files=outputs/toy/train_tier2.parquet", "data.val_files=outputs/toy/val_tier2.parquet"],
        ["s2l.guidance.length.initial=16"],
    ),
    "opd": Pair(
        "sparse_to_dense/stages/opd",
        [f"{LR}=1e-2"],
        {"actor/loss": "reverse KL, nats a token", "perf/total_num_tokens": "tokens a step"},
    ),
}


def run(name: str, recipe: str, overrides: list[str]) -> list[dict[str, float]]:
    """Lines of ``metrics.jsonl``; trains first if the run is not there."""
    folder = RUNS / name
    if not (folder / "done").exists():
        command = [sys.executable, "-m", "s2l_ext.studies.local", "train", "--config-name", recipe]
        subprocess.run([*command, f"trainer.default_local_dir={folder}", *COMMON, *overrides], check=True)
        (folder / "done").touch()
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{"step": line["step"], **derived(line["data"])} for line in lines]


def derived(data: dict[str, float]) -> dict[str, float]:
    """Held-out accuracy as a mean over data sources, and tokens a row."""
    held_out = [value for name, value in data.items() if name.startswith(HELD_OUT)]
    sources = ("learner", "explorer")
    rows, tokens = (sum(data.get(f"s2l/source/{who}/{what}", 0) for who in sources) for what in ("rows", "tokens"))
    more = {HELD_OUT: sum(held_out) / len(held_out)} if held_out else {}
    return data | more | ({LENGTH: tokens / rows} if rows else {})


def draw(name: str, pair: Pair) -> None:
    """Six curves, the good run blue, the bad one orange."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    titles = {HELD_OUT: "held-out accuracy", SCORE: "reward of the rows", LENGTH: LENGTH, NORM: "gradient norm"}
    figure, axes = plt.subplots(2, 3, figsize=(9, 4.6))
    for label, color, overrides in (("good", "#3f6fb5", pair.good), ("bad", "#e08a1e", pair.bad)):
        lines = run(f"{name}_{label}", pair.recipe, [*pair.both, *overrides])
        for ax, (metric, title) in zip(axes.flat, {**titles, **pair.watched}.items(), strict=True):
            points = [(line["step"], line[metric]) for line in lines if line.get(metric) is not None]
            ax.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.8)
            ax.set_title(title, fontsize=9)
            ax.tick_params(labelsize=7)
            ax.grid(alpha=0.25)
    axes.flat[0].legend(fontsize=8)
    for ax in axes[1]:
        ax.set_xlabel("step", fontsize=8)
    figure.tight_layout()
    figure.savefig(IMAGES / f"watch_{name}.png", dpi=100)
    plt.close(figure)


if __name__ == "__main__":
    for name in sys.argv[1:] or PAIRS:
        draw(name, PAIRS[name])
