"""``s2l submit``: any ``s2l`` command as a job of a running Ray cluster, through Ray's own job server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from s2l_ext.cli import check, train
from s2l_ext.errors import ConfigError

ADDRESS = "http://127.0.0.1:8265"
CHECKED_HERE = {"train": train, "check": check}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.usage = "s2l submit [options] -- COMMAND [ARGUMENT ...]   (or: s2l submit [--address URL] --stop JOB)"
    parser.epilog = "exit code: the job's own; 3 if it was stopped, 2 if it was refused here, 130 after Ctrl-C"
    parser.add_argument("--address", default=ADDRESS, metavar="URL", help=f"the cluster's job server ({ADDRESS})")
    parser.add_argument(
        "--follow", action=argparse.BooleanOptionalAction, help="print the job's log and wait for its end (the default)"
    )
    parser.add_argument("--stop", metavar="JOB", help="stop a job instead; a training run resumes when sent again")
    parser.add_argument("--runtime-env", type=Path, metavar="YAML", help="Ray's runtime environment, as in its manual")
    parser.add_argument("--working-dir", type=Path, metavar="DIR", help="local folder that the job starts in a copy of")
    parser.add_argument(
        "--env",
        action="append",
        default=[],
        metavar="NAME",
        help="pass this shell variable to the job; secrets are refused",
    )
    parser.add_argument("--debug", action="store_true", help="show the traceback of a refusal")
    parser.add_argument("words", nargs="*", metavar="COMMAND", help="after --: train --config-name RECIPE ...")


def main(args: argparse.Namespace) -> int:
    """Submit a job, or stop one; returns the exit code."""
    from s2l_ext.launch.job_files import runtime_env
    from s2l_ext.launch.submit import JobServer

    if args.stop is not None:
        _refuse_beside_stop(args)
        return JobServer(args.address).stop(args.stop)
    environment = runtime_env(args.runtime_env, args.working_dir, args.env, os.environ)
    check_words(args.words, environment)
    server = JobServer(args.address)
    job = server.send(args.words, environment)
    if args.follow is False:
        print(job)
        return 0
    print(f"s2l submit: job {job} at {args.address}", file=sys.stderr, flush=True)
    return server.follow(job)


def _refuse_beside_stop(args: argparse.Namespace) -> None:
    given = {
        "a command": args.words,
        "--follow or --no-follow": args.follow is not None,
        "--runtime-env": args.runtime_env,
        "--working-dir": args.working_dir,
        "--env": args.env,
    }
    useless = [name for name, value in given.items() if value]
    if useless:
        raise ConfigError(f"--stop {args.stop} beside {', '.join(useless)}: a job is either stopped or submitted.")


def check_words(words: Sequence[str], environment: Mapping[str, Any]) -> None:
    """Check the command before it is sent; prints warnings. Raises ConfigError: no command, a recipe that does not
    compose or contradicts itself, or a file that stays here."""
    if not words:
        raise ConfigError("nothing to submit: s2l submit [options] -- train --config-name RECIPE ...")
    if words[0] in ("s2l", "submit"):
        raise ConfigError(
            f"'{words[0]}' after --: give the command as it follows `s2l`, e.g. -- train --config-name ..."
        )
    if words[0] in CHECKED_HERE:
        from s2l_ext.launch.job_files import check_recipe

        parser = argparse.ArgumentParser(prog=f"s2l submit -- {words[0]}")
        CHECKED_HERE[words[0]].add_arguments(parser)
        args = parser.parse_intermixed_args(list(words[1:]))
        for warning in check_recipe(args.config_name, args.overrides, args.config_dir, environment):
            print(f"s2l: warning: {warning}", file=sys.stderr)
