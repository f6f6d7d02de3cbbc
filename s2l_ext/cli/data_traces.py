"""``s2l data traces-as-store``: reasoning traces as a store, for SFT on them."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from s2l_ext.data.tokenizers import trust_option
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.arguments import add_trust, chat_option
from s2l_ext.explore.traces import TraceStore, write


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data traces-as-store``."""
    add = parser.add_argument
    add("--model", required=True, help="the learner, whose tokenizer and chat template are used")
    add("--data", type=Path, nargs="+", required=True, metavar="FILE", help="verl parquet with traces")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the store")
    add("--trace", default="extra_info.trace", help="column of the traces (default: %(default)s)")
    add("--without-trace", choices=("error", "drop"), default="error", help="rows without one (default: %(default)s)")
    add("--chat-option", action="append", default=[], metavar="KEY=VALUE", help="argument of the chat template; repeat")
    add_trust(parser)
    add("--json", action="store_true", help="print the report as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l data traces-as-store``. Returns the exit status; unusable input raises DataError."""
    other = [path for path in args.data if path.suffix != ".parquet"]
    if other:
        raise ConfigError(f"--data {other[0]}: expected verl parquet. `s2l data` makes it.")
    options = dict(map(chat_option, args.chat_option))
    trust = trust_option(args.trust_remote_code)
    found = write(TraceStore(args.model, tuple(args.data), args.out, args.trace, args.without_trace, options, trust))
    if args.json:
        print(json.dumps(found | {"out": str(args.out)}))
    else:
        print(
            f"{found['rows']} traces ({found['tokens']} tokens) written to {args.out}, {found['dropped']} rows dropped"
        )
    return 0
