"""The paper's routes on the toy, with several seeds: one table with intervals over seeds.

    python benchmarks/sparse_to_dense.py --out outputs/sparse_to_dense/controls --seeds 0 1 2

Each seed is one pipeline (recipes/sparse_to_dense/controls.yaml); a second call goes on where the first stopped. The
interval is Student's t over seeds; "- bridge" is the mean difference to the RL-teacher bridge, seed by seed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROUTES = {
    "student": "student before training",
    "teacher": "raw teacher",
    "teacher_rl": "RL teacher",
    "direct_grpo": "direct GRPO on the student",
    "raw_bridge": "bridge from the raw teacher",
    "warm_up": "RL teacher, warm-up alone (without OPD)",
    "opd_without_warm_up": "RL teacher, OPD alone (without warm-up)",
    "bridge": "bridge from the RL teacher",
}
T_QUANTILE = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""0.975 quantile of Student's t by number of seeds."""

DIVERGENCES = ("forward_kl_per_token", "reverse_kl_per_token")


def run(out: Path, seed: int, words: list[str]) -> Path:
    """One seed's pipeline; returns its folder."""
    folder = out / f"seed_{seed}"
    command = [sys.executable, "-m", "s2l_ext.cli", "pipeline", "sparse_to_dense/controls", "--out", str(folder)]
    subprocess.run([*command, f"vars.seed={seed}", *words], check=True)
    return folder


def measured(folder: Path) -> dict[str, dict[str, float]]:
    """Stage -> what its evaluation gave."""
    rows = json.loads((folder / "table.json").read_text())
    return {row["stage"]: next(iter(row["accuracy"].values())) for row in rows if row["accuracy"]}


def interval(values: list[float]) -> tuple[float, float | None]:
    """Mean and half the width of its 95 % interval over seeds; None for one seed."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return mean, None
    return mean, T_QUANTILE[len(values)] * statistics.stdev(values) / len(values) ** 0.5


def table(seeds: list[dict[str, dict[str, float]]]) -> list[dict[str, object]]:
    """One row for each route."""
    rows: list[dict[str, object]] = []
    for name, text in ROUTES.items():
        row: dict[str, object] = {"route": text, "stage": name}
        row["accuracy"] = interval([seed[name]["accuracy"] for seed in seeds])
        row["difference"] = interval([seed[name]["accuracy"] - seed["bridge"]["accuracy"] for seed in seeds])
        for kind in DIVERGENCES:
            values = [seed[name][kind] for seed in seeds if kind in seed[name]]
            row[kind] = interval(values) if values else None
        rows.append(row)
    return rows


def shown(value: object, sign: str = "") -> str:
    if not isinstance(value, tuple):
        return ""
    mean, half = value
    return f"{mean:{sign}.3f}" + ("" if half is None else f" ± {half:.3f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("outputs/sparse_to_dense/controls"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("overrides", nargs="*", help="for every training stage")
    args = parser.parse_intermixed_args()
    if len(args.seeds) > max(T_QUANTILE):
        parser.error(f"--seeds: {len(args.seeds)} seeds, at most {max(T_QUANTILE)}")
    rows = table([measured(run(args.out, seed, args.overrides)) for seed in args.seeds])
    (args.out / "controls.json").write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n95 % intervals over seeds {args.seeds}; divergences from the RL teacher, nats per token")
    print("| route | accuracy | - bridge | forward KL | reverse KL |\n|---|---|---|---|---|")
    for row in rows:
        cells = [shown(row["accuracy"]), shown(row["difference"], "+"), *(shown(row[kind]) for kind in DIVERGENCES)]
        print(f"| {row['route']} | {' | '.join(cells)} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
