"""``s2l train``: print the plan of a recipe, then train."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2l_ext.launch.train import Prepared


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that train and check share."""
    parser.add_argument("--config-name", required=True, metavar="RECIPE", help="e.g. s2l_po/toy, or a YAML file")
    parser.add_argument(
        "--config-dir", action="append", default=[], metavar="DIR", type=Path, help="more recipes, searched first"
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a refusal")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="Hydra: a.b=1, +a.b=1, ++a.b=1, ~a.b")


def main(args: argparse.Namespace) -> int:
    """Blocks until the run ends; an exception inside it is raised here."""
    from s2l_ext.launch import train

    prepared = train.prepare(args.config_name, args.overrides, args.config_dir)
    show(prepared, "s2l train")
    train.run(prepared)
    return 0


def show(prepared: Prepared, title: str) -> None:
    """The plan on standard output, warnings on standard error."""
    from s2l_ext.launch.plan_summary import render

    print("\n".join([f"{title}: plan\n{render(prepared.plan)}", *prepared.memory.lines]), flush=True)
    for warning in prepared.warnings:
        print(f"s2l: warning: {warning}", file=sys.stderr)
