"""``s2l pipeline``: run the stages of a file, each in its own process, and continue where an earlier call stopped."""

from __future__ import annotations

import argparse
import contextlib
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.pipeline.file import read_pipeline
from s2l_ext.pipeline.plan import Plan
from s2l_ext.pipeline.runner import Runner, locked
from s2l_ext.pipeline.stage import Pipeline
from s2l_ext.pipeline.table import Progress, final_rows, final_table, status_rows
from s2l_ext.report.stages import TABLE
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import CommandFailed
from s2l_ext.utils.refusal import EXIT_STOPPED
from s2l_ext.utils.run_lock import is_held
from s2l_ext.utils.text_table import text_table

LOG_LINES = 30
HEAD = ("stage", "kind", "state", "why", "attempts")
EXIT_FAILED = 1


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of ``s2l pipeline``."""
    add = parser.add_argument
    add("file", type=Path, metavar="PIPELINE.yaml", help="a file with stages: or base:")
    add("--out", type=Path, metavar="DIR", help="instead of the file's output_dir")
    add("--from", dest="from_stage", metavar="STAGE", help="make it and what takes from it again")
    add("--only", metavar="STAGE", help="run only this stage; its inputs must be finished")
    look = parser.add_mutually_exclusive_group()
    look.add_argument("--dry-run", action="store_true", help="print what would run and why, and run nothing")
    look.add_argument("--status", action="store_true", help="print the state of every stage")
    add("--json", action="store_true", help="print JSON; progress goes to standard error")
    add("--debug", action="store_true", help="show the traceback of a refusal")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="a key of the file, STAGE.key, or a key of every train stage")


def main(args: argparse.Namespace) -> int:
    """0: everything requested is finished; 1: a stage failed; 2: refused, with one message."""
    pipeline = read_pipeline(args.file, args.out, args.overrides)
    _check_stages(args, [stage.name for stage in pipeline.stages])
    remade = pipeline.downstream(args.from_stage) if args.from_stage else []
    if args.dry_run or args.status:
        return _look(args, pipeline, remade)
    with locked(pipeline.out) as token:
        plan = Plan(pipeline)
        plan.check(remade)
        plan.manifest.invalidate(remade)
        return _run(args, plan, token)


def _check_stages(args: argparse.Namespace, names: list[str]) -> None:
    for option, name in (("--from", args.from_stage), ("--only", args.only)):
        if name is not None and name not in names:
            raise ConfigError(f"{option} {name}: no such stage.{did_you_mean(name, names)} Stages: {', '.join(names)}.")
    if args.from_stage and args.only and args.from_stage != args.only:
        raise ConfigError(
            f"--from {args.from_stage} --only {args.only}: --from would set aside what --only then waits for. Name one "
            "stage twice, or leave one of the options out."
        )


def _goes_on(args: argparse.Namespace) -> str:
    """How an interrupted call is gone on with: --from makes its stages again on every call."""
    return "Run it again without --from: it" if args.from_stage else "The same command"


def _look(args: argparse.Namespace, pipeline: Pipeline, remade: list[str]) -> int:
    plan = Plan(pipeline)
    if args.dry_run:
        plan.check(remade)
    rows = status_rows(plan, plan.decisions(remade), is_held(pipeline.out))
    plan.digests.save()
    text = text_table(HEAD, [[str(row[name]) for name in HEAD] for row in rows])
    shown: dict[str, Any] = {"pipeline": pipeline.name, "out": str(pipeline.out), "stages": rows}
    if args.dry_run:
        rows = [row for row in rows if args.only in (None, row["stage"])]
        for row in rows:
            row["commands"] = [shlex.join(command.words) for command in plan.jobs[row["stage"]].commands]
        shown |= {"stages": rows, "warnings": plan.warnings}
        text = "\n".join([_dry_run_text(rows), *(f"warning: {warning}" for warning in plan.warnings)])
    print(json.dumps(shown, indent=1) if args.json else text)
    return 0


def _dry_run_text(rows: list[dict[str, Any]]) -> str:
    lines = []
    for number, row in enumerate(rows, start=1):
        lines.append(f"[{number}/{len(rows)}] {row['stage']} ({row['kind']}): {row['state']}: {row['why']}")
        lines += [f"    {command}" for command in row["commands"] if row["state"] != "done"]
    return "\n".join(lines)


def _run(args: argparse.Namespace, plan: Plan, token: str) -> int:
    stream = sys.stderr if args.json else sys.stdout
    if (plan.pipeline.out / TABLE).exists():  # until the end it has no stage that runs now
        _write_table(plan)
    progress = Progress(len(plan.stages), stream)
    for warning in plan.warnings:
        progress.say(f"warning: {warning}")
    try:
        with contextlib.redirect_stdout(stream):
            Runner(plan, token, progress).run(args.only)
    except CommandFailed as failure:
        print("\n".join(last_lines(failure.log, LOG_LINES)), file=sys.stderr)
        print(f"s2l pipeline: {failure} The whole log: {failure.log}", file=sys.stderr)
        print(f"{_goes_on(args)} continues from the stage's last checkpoint.", file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"s2l pipeline: stopped. {_goes_on(args)} continues from here.", file=sys.stderr)
        return EXIT_STOPPED
    except OSError as error:
        free = shutil.disk_usage(plan.pipeline.out).free / 1e9
        raise ResourceError(
            f"{error.filename or plan.pipeline.out}: {error.strerror or error} ({free:.2f} GB free). Finished "
            f"stages are kept. {_goes_on(args)} continues from here."
        ) from error
    rows, out = _write_table(plan), plan.pipeline.out
    if args.json:
        print(json.dumps(plan.manifest.to_dict() | {"out": str(out), "table": rows}, indent=1))
    else:
        print(f"{final_table(rows)}\nFiles:   {out / 'manifest.json'}, {out / 'table.md'}, {out / 'models'}")
    return 0


def _write_table(plan: Plan) -> list[dict[str, Any]]:
    rows, out = final_rows(plan), plan.pipeline.out
    write_atomically(out / TABLE, json.dumps(rows, indent=1) + "\n")
    write_atomically(out / "table.md", final_table(rows) + "\n")
    return rows
