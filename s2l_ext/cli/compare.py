"""``s2l compare``: two evaluations of the same problems, paired by problem; or the seeds of two configurations."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.utils.text_table import text_table

AGAINST = "--against"


def rewrite_words(words: Sequence[str]) -> list[str]:
    """``--`` between two sets of files, as argparse can read it: options may follow."""
    return [AGAINST if word == "--" else word for word in words]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l compare``."""
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="A.json", help="two results of s2l eval, or A1 A2 A3 -- B1 B2 B3: seeds")
    add(AGAINST, type=Path, nargs="+", metavar="B.json", default=[], help="the same as --: results of the other side")
    add("--unpaired", action="store_true", help="seeds: A1 and B1 share nothing (Welch's t)")
    add("--allow", action="append", default=[], metavar="SETTING", help="a sampling setting that may differ; repeat")
    add("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    add("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """``s2l compare``. Returns the exit status; what cannot be compared raises DataError."""
    from s2l_ext.evaluation.compare import compare, compare_seeds

    files, against = args.files, args.against
    if against:
        found = compare_seeds(files, against, tuple(args.allow), args.seed, not args.unpaired)
        lines = pooled_lines(found)
    elif args.unpaired:
        raise ConfigError("--unpaired is for seeds of two sides: A1 A2 A3 -- B1 B2 B3. Two results pair by problem.")
    elif len(files) == 2:
        found = compare(*files, tuple(args.allow), args.seed)
        lines = as_lines(found)
    else:
        raise ConfigError(f"{len(files)} files and no --: give two, or the seeds of two sides: A1 A2 A3 -- B1 B2 B3.")
    print(json.dumps(found, indent=1) if args.json else "\n".join(lines))
    return 0


def pooled_lines(found: dict[str, Any]) -> list[str]:
    """A table over seeds, and what may be said."""
    how = "paired in the order given" if found["paired"] else "independent (Welch)"
    rows = []
    for name, measure in found["measures"].items():
        if name != "pass@1":
            gap = measure["difference"]
            least = "" if gap["detectable"] is None else f"{gap['detectable']:.4f}"
            rows.append((name, *(_over_seeds(measure[side]) for side in "ab"), _over_seeds(gap, "+"), least))
            inside = ["{:.4f} to {:.4f}".format(*measure[side]["ci95_problems"]) for side in "ab"]
            rows.append(("  seeds and problems", *inside, "", ""))
    return [
        *(f"{name} {' '.join(found[name.lower()]['files'])}" for name in "AB"),
        text_table(("", "A", "B", f"B - A, {how}", "would show"), rows),
        "Intervals are at 95 %: Student's t over seeds, below it a bootstrap of seeds and their problems.",
        found["sentence"],
    ]


def _over_seeds(estimate: dict[str, Any], sign: str = "") -> str:
    low, high = estimate["ci95"]
    return f"{estimate['mean']:{sign}.4f} ({low:{sign}.4f} to {high:{sign}.4f})"


def as_lines(found: dict[str, Any]) -> list[str]:
    """A table, and the difference in one sentence."""
    from s2l_ext.evaluation.intervals import FEWEST

    low, high = found["ci95"]
    rows = [("accuracy", found["a"]["accuracy"], found["b"]["accuracy"], found["difference"], found["ci95"])]
    for k, pair in found["pass_at_k"].items():
        if k != "1":
            rows.append((f"pass@{k}", *pair, found["pass_at_k_difference"][k], found["pass_at_k_ci95"][k]))
    sentences = {"clear": "clear", "not clear": "not clear: the interval holds 0"}
    few = f"no verdict: {found['wins'] + found['losses']} problems differ, at least {FEWEST} must"
    said = sentences.get(found["verdict"], few)
    return [
        f"A {found['a']['file']} ({found['a']['model']})",
        f"B {found['b']['file']} ({found['b']['model']})",
        f"{'':12}{'A':>9}{'B':>9}{'B - A':>9}   95 % interval",
        *(f"{n:<12}{a:>9.4f}{b:>9.4f}{d:>+9.4f}   {ends[0]:+.4f} to {ends[1]:+.4f}" for n, a, b, d, ends in rows),
        f"B - A {found['difference']:+.4f}, 95 % interval {low:+.4f} to {high:+.4f} ({said})",
        f"by problem: B better on {found['wins']}, worse on {found['losses']}, equal on {found['ties']} of "
        f"{found['num_problems']}",
    ]
