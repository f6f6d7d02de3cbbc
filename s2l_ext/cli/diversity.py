"""``s2l diversity``: which explorer for this learner, as a table and a page of one file with charts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from s2l_ext.evaluation.arguments import add_sampling
from s2l_ext.evaluation.engines import ENGINES
from s2l_ext.report.page import refuse_foreign, write_page
from s2l_ext.studies.diversity.gradients import CHOICES
from s2l_ext.studies.diversity.job import DEFAULTS, RESULT, compare
from s2l_ext.studies.diversity.page import PAGE, as_lines, render


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l diversity``. None is "not given", so that what cannot apply is refused."""
    add = parser.add_argument
    add("--models", metavar="NAME=MODEL,...", help="Hugging Face folders or hub ids; NAME defaults to the last part")
    add("--learner", metavar="NAME", help="the model to be trained (default: the last of --models)")
    add("--out", required=True, type=Path, metavar="DIR", help=f"{RESULT}, the page and samples")
    add_sampling(parser, DEFAULTS, given_only=True)
    add("--engine", choices=ENGINES, help="default vllm")
    add("--explorer-temperature", type=float, help="default: --temperature; S2L-PO's code trains with 0.7")
    add("--explorer-top-p", type=float, help="default: --top-p; S2L-PO's code trains with 0.95")
    add("--high-temperature", type=float, help="of the learner's token noise, 0 for none (default 1.5)")
    add("--compared", type=int, metavar="M", help="samples in Self-BLEU and edit diversity (default: up to 16)")
    add("--gradient-problems", type=int, metavar="P", help="first P problems by id, 0 for none (default 32)")
    add("--gradient-parameters", choices=CHOICES, help="default: all up to 50 M parameters, else last_layer")
    add("--coherence", metavar="JUDGE", help="toy, or package.module:function: share of steps that follow")
    add("--json", action="store_true", help="print the result as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l diversity``. Returns the exit status; what cannot be compared raises."""
    refuse_foreign(args.out / PAGE)
    result = compare(args)
    write_page(args.out / PAGE, render(result))
    if args.json:
        print(json.dumps(result, indent=1))
    else:
        print("\n".join(as_lines(result)))
        print(f"written    {args.out / RESULT}, {args.out / PAGE}")
    return 0
