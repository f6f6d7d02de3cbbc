"""``s2l data sums``: write sums and short word problems with worked traces."""

from __future__ import annotations

import argparse
from pathlib import Path

from s2l_ext.data.sums import write_files


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for train and val.parquet")
    parser.add_argument("--train", type=int, default=128, metavar="N", help="to train on (default %(default)s)")
    parser.add_argument("--val", type=int, default=40, metavar="N", help="held-out problems (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the draw; splits are always disjoint (default 0)")


def main(args: argparse.Namespace) -> int:
    rows = {"train": args.train, "val": args.val}
    for split, path in write_files(args.out, rows, args.seed).items():
        print(f"{path}: {rows[split]} problems with traces")
    return 0
