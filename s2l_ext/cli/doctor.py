"""``s2l doctor``: what this machine or cluster can run, how safe it is, and what to do about it."""

from __future__ import annotations

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the findings as one JSON list")
    parser.add_argument(
        "--ray", metavar="ADDRESS", help="join this cluster (host:port, auto) and ask every node, a minute or two"
    )


def main(args: argparse.Namespace) -> int:
    """Exit code 1 when something that every run needs is missing."""
    from s2l_ext.doctor import look

    findings = look(args.ray)
    if args.json:
        print(json.dumps([finding.as_json() for finding in findings], indent=1))
    else:
        print("\n".join(finding.as_line() for finding in findings))
    return 1 if any(finding.status == "fail" for finding in findings) else 0
