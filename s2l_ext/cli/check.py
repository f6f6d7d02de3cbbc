"""``s2l check``: everything that train does, except run."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys

from s2l_ext.cli import train


def add_arguments(parser: argparse.ArgumentParser) -> None:
    train.add_arguments(parser)
    parser.add_argument(
        "--for",
        dest="accelerators",
        metavar="8x80GB",
        help="check for this number and memory of accelerators instead of this machine's",
    )
    parser.add_argument("--json", action="store_true", help="print plan, warnings and fingerprint as JSON")


def main(args: argparse.Namespace) -> int:
    """0 for a run that can start; what cannot raises."""
    from s2l_ext.launch.accelerators import parse_accelerators
    from s2l_ext.launch.plan_summary import fingerprint
    from s2l_ext.launch.train import prepare

    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():  # verl prints meanwhile
        other = parse_accelerators(args.accelerators) if args.accelerators is not None else None
        prepared = prepare(args.config_name, args.overrides, args.config_dir, other)
    if args.json:
        result = {"plan": prepared.plan, "warnings": prepared.warnings, "fingerprint": fingerprint(prepared.cfg)}
        print(json.dumps(result | {"memory_gib": prepared.memory.as_dict()}, indent=1))
    else:
        train.show(prepared, "s2l check")
        print("s2l check: OK.")
    return 0
