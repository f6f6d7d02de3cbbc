"""``s2l compare``: two evaluations of the same problems, paired by problem."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l compare``."""
    parser.add_argument("a", type=Path, metavar="A.json", help="what s2l eval wrote")
    parser.add_argument("b", type=Path, metavar="B.json", help="the one to compare with it")
    parser.add_argument(
        "--allow", action="append", default=[], metavar="SETTING", help="a sampling setting that may differ; repeat"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the bootstrap (default %(default)s)")
    parser.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """``s2l compare``. Returns the exit status; what cannot be compared raises DataError."""
    from s2l_ext.evaluation.compare import compare

    found = compare(args.a, args.b, tuple(args.allow), args.seed)
    print(json.dumps(found, indent=1) if args.json else "\n".join(as_lines(found)))
    return 0


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
