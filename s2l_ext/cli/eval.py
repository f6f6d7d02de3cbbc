"""``s2l eval``: sample a model on problems, grade, and write accuracy, pass@k and what they came from."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from s2l_ext.evaluation.arguments import add_arguments, job_of
from s2l_ext.evaluation.benchmarks import GROUP_COLUMNS
from s2l_ext.evaluation.run import evaluate

__all__ = ["add_arguments", "main"]

UNSHOWN = ("problems", "by_data_source", *(f"by_{column}" for column in GROUP_COLUMNS))


def main(args: argparse.Namespace) -> int:
    """``s2l eval``. Returns the exit status; what cannot be evaluated raises."""
    result = evaluate(job_of(args), progress=not args.json)
    if args.json:
        print(json.dumps({name: value for name, value in result.items() if name not in UNSHOWN}, indent=1))
    else:
        print("\n".join(as_lines(result, args.out, every_k=args.k is not None)))
    return 0


def as_lines(result: dict[str, Any], out: Path, every_k: bool = False) -> list[str]:
    """The result as a person reads it; without ``every_k`` powers of two and the largest k."""
    n = result["fingerprints"]["sampling"]["n"]
    error = result["standard_error"]
    sure = "" if error is None else f" ± {error:.4f} (standard error over problems)"
    if result["ci95"]:
        sure += f", 95 % interval {result['ci95'][0]:.4f} to {result['ci95'][1]:.4f}"
    lines = [
        f"accuracy   {result['accuracy']:.4f}{sure}",
        f"samples    {n} for each of {result['num_problems']} problems, mean length {result['mean_length']:.1f} "
        f"tokens, {result['truncation_rate']:.1%} truncated",
        f"pass@k     {_format_by_k(result, 'pass_at_k', every_k)}",
    ]
    if result["maj_at_k"]:
        lines.append(f"maj@k      {_format_by_k(result, 'maj_at_k', every_k)}")
    for column in GROUP_COLUMNS:
        for name, group in result.get(f"by_{column}", {}).items():
            accuracy = _with_error(group["accuracy"], group["standard_error"])
            lines.append(f"{column} {name}: accuracy {accuracy}, {group['num_problems']} problems")
    names = [name for name in result if name.endswith("_kl_per_token")]
    lines += [f"{name:<10} {_with_error(result[name], result[f'{name}_standard_error'])}" for name in names]
    return [*lines, f"written    {out}"]


def _with_error(value: float, error: float | None) -> str:
    return f"{value:.4f}" + ("" if error is None else f" ± {error:.4f}")


def _format_by_k(result: dict[str, Any], name: str, every_k: bool) -> str:
    values, errors = result[name], result[f"{name}_standard_error"]
    shown = [k for k in values if every_k or int(k) & (int(k) - 1) == 0 or k == list(values)[-1]]
    return "  ".join(f"{k}: {_with_error(values[k], errors[k])}" for k in shown)
