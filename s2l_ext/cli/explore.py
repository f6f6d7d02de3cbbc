"""``s2l explore``: draw a frozen model's responses into a store; merge stores; say what is in one."""

from __future__ import annotations

import argparse
import json

from s2l_ext.errors import ConfigError
from s2l_ext.explore.arguments import add_arguments, job_of
from s2l_ext.explore.run import explore
from s2l_ext.store.merge import merge
from s2l_ext.store.stats import as_lines, stats

__all__ = ["add_arguments", "main"]

OF_MODE = {"merge": ("merge", "out", "json"), "stats": ("stats", "json")}


def main(args: argparse.Namespace) -> int:
    """``s2l explore``. Returns the exit status; what cannot be done raises."""
    mode = _mode(args)
    if mode == "merge":
        found = merge(args.merge, args.out)
        left = f", {found['duplicates']} identical ones left out" if found["duplicates"] else ""
        lines = [f"{found['responses']} responses to {found['prompts']} prompts{left}", f"written      {args.out}"]
    elif mode == "stats":
        found = stats(args.stats)
        lines = as_lines(found)
    else:
        drawn = explore(job_of(args), progress=not args.json)
        found = stats(args.out, verify=False)
        new = {"responses": drawn.responses, "tokens": drawn.tokens, "seconds": round(drawn.seconds, 2)}
        speed = f", {drawn.tokens / drawn.seconds:.0f} tokens/s" if drawn.seconds else ""
        summary = f"drawn        {drawn.responses} responses{speed}; {drawn.before} were there before"
        lines = [summary, *as_lines(found), f"written      {args.out}"]
        found = {"drawn": new, "before": drawn.before, **found}
    print(json.dumps(found, indent=1) if args.json else "\n".join(lines))
    return 0


def _mode(args: argparse.Namespace) -> str:
    """``draw``, ``merge`` or ``stats``. Raises ConfigError for options that are missing or do not apply."""
    modes = [name for name in OF_MODE if getattr(args, name) is not None] or ["draw"]
    given = {name for name, value in vars(args).items() if value is not None and value is not False}
    mode = modes[0]
    needed = {"draw": ("model", "data", "out"), "merge": ("out",), "stats": ()}[mode]
    missing = [_option(name) for name in needed if name not in given]
    if missing:
        raise ConfigError(f"s2l explore{'' if mode == 'draw' else f' --{mode}'} needs {', '.join(missing)}.")
    foreign = sorted(given - {*OF_MODE[mode]}) if mode in OF_MODE else []
    if foreign:
        raise ConfigError(f"{_option(foreign[0])} does not apply to --{mode}. Leave it out.")
    return mode


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
