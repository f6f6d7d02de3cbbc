"""How a command ends when this package refuses something: one message on stderr, exit code 2."""

from __future__ import annotations

import argparse
import re
import sys
import traceback
from collections.abc import Callable

from s2l_ext.errors import S2LError
from s2l_ext.utils.secrets import masked_text

EXIT_INVALID = 2
EXIT_STOPPED = 130
"""Ctrl-C."""
LONGEST = 8000
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def run_cli(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run a command. ``--debug`` adds the traceback; an error from a Ray worker shows as it was raised there."""
    try:
        return run(args) or 0
    except S2LError as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"s2l: error: {printable(str(getattr(error, 'cause', None) or error))}", file=sys.stderr)
        return EXIT_INVALID


def printable(message: str) -> str:
    """Messages repeat what stood in a file: no secret of it is shown, and no sequence that a terminal obeys."""
    cut = message if len(message) <= LONGEST else f"{message[:LONGEST]}... ({len(message) - LONGEST} more characters)"
    return CONTROL.sub(lambda found: f"\\x{ord(found[0]):02x}", masked_text(cut))
