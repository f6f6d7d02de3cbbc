"""Options of ``s2l explore``, and the job that they describe."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2l_ext.evaluation.arguments import DEFAULTS as OF_EVAL
from s2l_ext.evaluation.arguments import add_sampling, shared
from s2l_ext.explore.run import Exploration, Placement

DEFAULTS = OF_EVAL | {"n": 32, "temperature": 0.7}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l explore``."""
    parser.epilog = (
        "Give the same command again to continue a killed run. An existing store refuses another --n or other prompts "
        "without --only-missing. It always refuses another model, sampling or seed."
    )
    parser.add_argument("--model", help="Hugging Face folder or hub id with a chat template")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the store: a new folder, or one to continue")
    parser.add_argument(
        "--only-missing", action="store_true", help="keep the store's responses and draw the missing ones"
    )
    parser.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="write these stores as one into --out")
    parser.add_argument("--stats", type=Path, metavar="DIR", help="print statistics of this store")
    parser.add_argument("--json", action="store_true", help="print the result as JSON, without a progress bar")
    add_sampling(parser, DEFAULTS, given_only=True)
    engines = parser.add_argument_group("several engines")
    engines.add_argument("--engines", type=int, metavar="N", help="vLLM engines side by side, with Ray (default 1)")
    engines.add_argument("--ray-address", metavar="ADDRESS", help="a Ray cluster, or auto (default: RAY_ADDRESS)")


def job_of(args: argparse.Namespace) -> Exploration:
    """Raises ConfigError or DataError for words that say nothing usable; no data is opened."""
    engines = 1 if args.engines is None else args.engines
    placement = Placement(engines, args.ray_address)
    return Exploration(**shared(args, DEFAULTS), placement=placement, only_missing=args.only_missing)
