"""How a command ends when this package refuses something: one message on stderr, exit code 2."""

from __future__ import annotations

import argparse
import sys
import traceback
from collections.abc import Callable

from s2l_ext.errors import S2LError

EXIT_REFUSED = 2


def guarded(run: Callable[[argparse.Namespace], int | None], args: argparse.Namespace) -> int:
    """Run a command. ``--debug`` adds the traceback; an error from a Ray worker shows as it was raised there."""
    try:
        return run(args) or 0
    except S2LError as error:
        if getattr(args, "debug", False):
            traceback.print_exc()
        print(f"s2l: error: {getattr(error, 'cause', None) or error}", file=sys.stderr)
        return EXIT_REFUSED
