"""Where does the adaptive guidance length go when the true accuracy stays the same? Simulated runs, as a table.

    python benchmarks/guidance_length.py --runs 2000

The rule multiplies ratios of noisy accuracies, whose mean lies above 1, so the length drifts although nothing changed:
upward as a rule, downward where few rollouts are right and the upper bound cuts the long moves.
"""

from __future__ import annotations

import argparse

import numpy as np

from s2l_ext.methods.guidance.length import AdaptiveGuidance


def last_length(accuracy: float, rows: int, steps: int, max_change: float | None, rng: np.random.Generator) -> int:
    """Tokens after ``steps`` steps of ``rows`` rollouts, each right with probability ``accuracy``; starts at 1,024."""
    rule = AdaptiveGuidance(initial=1024, max_change=max_change)
    for correct in rng.binomial(rows, accuracy, steps):
        rule.observe(correct / rows)
    return rule.length


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rows", type=int, default=128, help="rollouts of a step")
    args = parser.parse_args()
    print(f"{args.runs} runs of {args.steps} steps with {args.rows} rollouts, from 1,024 tokens, bounds 1 and 3,072")
    print("accuracy  max_change   10 %  median   90 %  at most 2 tokens")
    for accuracy in (0.0, 0.02, 0.1, 0.3, 0.6):
        for max_change in (None, 1.5, 1.1):
            rng = np.random.default_rng(0)
            found = [last_length(accuracy, args.rows, args.steps, max_change, rng) for _ in range(args.runs)]
            low, middle, high = np.percentile(found, (10, 50, 90))
            stuck = np.mean(np.array(found) <= 2)
            limit = "none" if max_change is None else f"{max_change:g}"
            print(f"{accuracy:8g} {limit:>11} {low:7.0f} {middle:7.0f} {high:6.0f} {stuck:12.1%}")


if __name__ == "__main__":
    main()
