"""What the commands of ``s2l data`` share: their arguments, the checks of these and what is printed at the end."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from s2l_ext.data.converting import Written, counts
from s2l_ext.data.gold_report import MOST_CONVERTED, GoldReport, report
from s2l_ext.errors import DataError

KINDS = "JSON lines (gzipped or not) or parquet"


def add_common_arguments(parser: argparse.ArgumentParser, kinds: str) -> None:
    """``--input``, ``--out``, ``--limit``, ``--overwrite`` and ``--json``."""
    parser.add_argument(
        "--input", type=Path, action="extend", nargs="+", required=True, metavar="FILE", help=f"{kinds}; repeatable"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for <split>.parquet")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="first N rows of every input file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that hold other data")
    parser.add_argument("--json", action="store_true", help="print what was written and dropped as JSON")


def add_drop_repeats(parser: argparse.ArgumentParser) -> None:
    """``--drop-repeats``."""
    parser.add_argument(
        "--drop-repeats", action="store_true", help="keep the first row of a problem that comes again, and count them"
    )


def add_without_trace(parser: argparse.ArgumentParser, default: str) -> None:
    """``--without-trace keep|drop``."""
    parser.add_argument(
        "--without-trace",
        choices=("keep", "drop"),
        default=default,
        help="rows without a usable trace: keep them with an empty one, or leave them out (default: %(default)s)",
    )


def add_val_share(parser: argparse.ArgumentParser) -> None:
    """``--val-share``."""
    parser.add_argument(
        "--val-share",
        type=float,
        default=0.0,
        metavar="X",
        help="share of the rows for val.parquet, chosen by a hash of the problem (default: %(default)s)",
    )


def run(
    args: argparse.Namespace, convert: Callable[..., list[Written]], mathematical: bool = True, **settings: Any
) -> int:
    """Convert with the common arguments and ``settings``, and print what was written.

    Args:
        mathematical: the answers are for the mathematical reward; what it reads of them is printed too.

    Returns:
        The exit status.

    Raises:
        DataError: unusable arguments or input.
    """
    _check(args)
    common = {"data_source": args.data_source, "limit": args.limit, "overwrite": args.overwrite}
    files = convert(args.input, args.out, progress=not args.json, **common, **settings)
    golds = report([Path(file.path) for file in files], MOST_CONVERTED, not args.json) if mathematical else None
    return _show(files, golds, args.json)


def _check(args: argparse.Namespace) -> None:
    """Raises DataError for a ``--limit`` below 1, a ``--val-share`` outside [0, 1) or of val itself, or files twice."""
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit} must be at least 1.")
    if not 0 <= getattr(args, "val_share", 0.0) < 1:
        raise DataError(f"--val-share {args.val_share} must be in [0, 1).")
    if getattr(args, "val_share", 0.0) and args.name == "val":
        raise DataError("--val-share takes val.parquet from the other rows: it needs another --name than val.")
    twice = [str(path) for path, times in Counter(args.input).items() if times > 1]
    if twice:
        raise DataError(f"--input {twice[0]} is given twice.")


def _show(files: list[Written], golds: GoldReport | None, as_json: bool) -> int:
    """Print what was written, for people or as one JSON object. Returns the exit status."""
    if as_json:
        read = {} if golds is None else {"golds": golds.as_json()}
        print(json.dumps({"files": [asdict(file) for file in files], **read}))
        return 0
    for file in files:
        print(f"{file.path}: {file.rows} rows, {file.with_trace} with a trace (counts in {file.report})")
        for title in ("dropped_rows", "dropped_traces", "tiers"):
            if getattr(file, title):
                print(f"  {title.replace('_', ' ')}: {counts(getattr(file, title))}")
    if golds is not None:
        print("\n".join(golds.as_lines()))
    return 0
