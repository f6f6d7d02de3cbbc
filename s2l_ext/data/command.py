"""The commands of ``s2l data`` that convert: their arguments, and what is printed at the end."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import MISSING, asdict, fields
from pathlib import Path

from s2l_ext.data.converting import ConversionReport, Converter, counted
from s2l_ext.data.gold_report import GoldReport, report
from s2l_ext.data.hub import path_or_address
from s2l_ext.errors import DataError


def command_of(kind: type[Converter]) -> tuple[Callable[[argparse.ArgumentParser], None], Callable[..., int]]:
    """A function that adds the command's arguments, and one that runs it and returns the exit status."""
    return lambda parser: _add_arguments(parser, kind), lambda args: _convert(args, kind)


def _add_arguments(parser: argparse.ArgumentParser, kind: type[Converter]) -> None:
    what = "JSON lines (gzipped or not), parquet, or hf://owner/name[:config][@split]; repeatable"
    parser.add_argument(
        "--input", type=path_or_address, action="extend", nargs="+", required=True, metavar="FILE|hf://NAME", help=what
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for <split>.parquet")
    parser.add_argument("--limit", type=int, default=None, metavar="N", help="first N rows of every input file")
    parser.add_argument("--overwrite", action="store_true", help="replace files that hold other data")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    for item in fields(kind):
        more = {"dest": item.name, **item.metadata}
        flag = more.pop("flag", f"--{item.name.replace('_', '-')}")
        if item.default is False:
            parser.add_argument(flag, action="store_true", **more)
        elif item.default is MISSING:
            parser.add_argument(flag, required=True, **more)
        else:
            more["help"] += "" if item.default in (None, "") else " (default: %(default)s)"
            parser.add_argument(flag, default=item.default, **more)


def check_words(kind: type[Converter], parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Raise DataError for what the command would refuse of its words; no file is opened."""
    _add_arguments(parser, kind)
    _converter(parser.parse_args(words), kind).check()


def _converter(args: argparse.Namespace, kind: type[Converter]) -> Converter:
    return kind(**{item.name: getattr(args, item.name) for item in fields(kind)})


def _convert(args: argparse.Namespace, kind: type[Converter]) -> int:
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit} must be at least 1.")
    twice = [str(path) for path, times in Counter(args.input).items() if times > 1]
    if twice:
        raise DataError(f"--input {twice[0]} is given twice.")
    converter = _converter(args, kind)
    files = converter.convert(args.input, args.out, args.limit, args.overwrite, not args.json)
    paths = [Path(file.path) for file in files]
    golds = report(paths) if converter.mathematical else None
    _print(files, golds, args.json)
    return 0


def _print(files: list[ConversionReport], golds: GoldReport | None, as_json: bool) -> None:
    """For people, or as one JSON object."""
    if as_json:
        read = {} if golds is None else {"golds": asdict(golds)}
        print(json.dumps({"files": [asdict(file) for file in files], **read}))
        return
    for file in files:
        print(f"{file.path}: {file.rows} rows, {file.with_trace} with a trace (counts in {file.report})")
        for title in ("dropped_rows", "dropped_traces", "tiers"):
            if getattr(file, title):
                print(f"  {title.replace('_', ' ')}: {counted(getattr(file, title))}")
    if golds is not None:
        print("\n".join(golds.as_lines()))
