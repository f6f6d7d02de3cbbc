"""``s2l demo``: make the toy world, train S2L-PO on it, and show what was learned on held-out problems."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.report.overview import headline, verdict
from s2l_ext.studies.demo import PHASES, RECIPE, Demo, clear_earlier, run_phases, write_report
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import CommandFailed
from s2l_ext.utils.progress import Progress

LOG_LINES = 30


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l demo``."""
    parser.add_argument("--out", type=Path, default=Path("outputs/demo"), metavar="DIR", help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=None, metavar="N", help="training steps (default: the recipe's)")
    parser.add_argument("--config-name", default=RECIPE, metavar="RECIPE", help="default: %(default)s")
    parser.add_argument("--json", action="store_true", help="print summary.json instead of three lines")
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help="Hydra overrides for the training run")


def main(args: argparse.Namespace) -> int:
    """``s2l demo``. Exit status 0 when the run ended well, whatever it learned; 1 when it failed."""
    if args.steps is not None and args.steps < 1:
        raise DataError(f"--steps {args.steps} must be at least 1.")
    steps = () if args.steps is None else (f"trainer.total_training_steps={args.steps}",)
    return run_demo(Demo(args.out.resolve(), args.config_name, (*steps, *args.overrides)), as_json=args.json)


def run_demo(demo: Demo, as_json: bool = False) -> int:
    """Prepare, train, compare, write ``summary.json`` and ``report.html``, and say what came out."""
    clear_earlier(demo)
    progress = Progress(PHASES)
    try:
        ended = run_phases(demo, progress)
    except CommandFailed as failure:
        progress.close("failed", finished=False)
        print("\n".join(last_lines(failure.log, LOG_LINES)), file=sys.stderr)
        print(f"s2l demo: {failure} The whole log: {failure.log}", file=sys.stderr)
        return 1
    except BaseException:
        progress.close("stopped", finished=False)
        raise
    progress.close("done")
    summary = write_report(demo, ended, progress.seconds)
    print(json.dumps(summary, indent=1) if as_json else "\n".join(closing_lines(summary, demo)))
    return 0


def _command() -> str:
    """``s2l`` as this user can type it: the script beside the interpreter need not be on the PATH."""
    script = Path(sys.executable).with_name("s2l")
    return str(script) if script.exists() else f"{sys.executable} -m s2l_ext.cli"


def closing_lines(summary: dict[str, Any], demo: Demo) -> list[str]:
    """What was learned, where the files are, what to try next."""
    return [
        f"Learned: {headline(summary)}. {verdict(summary)}",
        f"Files:   {demo.out / 'report.html'} (open it), {demo.out / 'summary.json'}, {demo.run / 'metrics.jsonl'}",
        f"Next:    S2L_TOY_DIR={demo.out / 'toy'} {_command()} train --config-name grpo/toy  # no explorer",
    ]
