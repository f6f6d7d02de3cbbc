"""``s2l report``: what the folders of runs say, as one HTML file that needs nothing else."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.report import overview, seeds, stages
from s2l_ext.report.charts import MOST_LINES
from s2l_ext.report.ledger import Ledger
from s2l_ext.report.page import Section, page, write_page
from s2l_ext.report.run import Run, count_steps, difference, names_of, read_run

INDEX = "index.html"
COMPARED = Path("outputs/report")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l report``."""
    parser.add_argument(
        "run", type=Path, nargs="+", metavar="RUN", help="folder of a run, of s2l demo or of s2l pipeline"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help=f"default: RUN/report; of several runs {COMPARED}")
    parser.add_argument("--json", action="store_true", help="print the page, the runs' numbers and sections as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l report``."""
    folders: list[Path] = args.run
    out = args.out or (folders[0] / "report" if len(folders) == 1 else COMPARED)
    if len(folders) == 1 and stages.is_pipeline(folders[0]):
        return _report_pipeline(folders[0], out, args.json)
    runs = read_runs(folders)
    if len(seeds.pooled(runs)) > MOST_LINES:
        raise DataError(f"{len(runs)} runs: one page tells at most {MOST_LINES} apart. Report fewer at a time.")
    sections, path = overview.sections(runs), out / INDEX
    write_page(path, overview.run_page(runs, sections))
    if args.json:
        print(json.dumps(as_json(runs, path, sections)))
    elif len(runs) == 1:
        print(f"{count_steps(runs[0])}. Open {path}.")
    else:
        print(f"{len(runs)} runs. Open {path}.")
    return 0


def read_runs(folders: Sequence[Path]) -> list[Run]:
    """The runs, under names that tell them apart. Raises DataError: a folder holds no run or a pipeline, or two are the
    same."""
    for folder in folders:
        if stages.is_pipeline(folder) and len(folders) > 1:
            raise DataError(
                f"{folder}: the output of a pipeline, which has a page of its own. Beside other runs give one of its "
                "stages, stages/NAME/run."
            )
    runs = [read_run(folder) for folder in folders]
    seen: dict[Path, Path] = {}
    for run, folder in zip(runs, folders, strict=True):
        if run.folder in seen:
            raise DataError(f"{folder} is the same run as {seen[run.folder]}. Give each run once.")
        seen[run.folder] = folder
    return [replace(run, name=name) for run, name in zip(runs, names_of([run.folder for run in runs]), strict=True)]


def _report_pipeline(folder: Path, out: Path, as_json: bool) -> int:
    found, name = stages.read_stages(folder), folder.resolve().name
    sections = stages.sections(folder, found)
    write_page(out / INDEX, page(f"s2l report: {name}", name, "", sections))
    names = [section.name for section in sections if section.is_drawn]
    if as_json:
        print(json.dumps({"pages": [str(out / INDEX)], "stages": [stage.name for stage in found], "sections": names}))
    else:
        print(f"{len(found)} training stages. Open {out / INDEX}.")
    return 0


def as_json(runs: Sequence[Run], page: Path, sections: Sequence[Section]) -> dict[str, Any]:
    """For programs: what is printed with ``--json``. ``steps`` of a single run stands at the top too."""
    found: dict[str, Any] = {"pages": [str(page)], "runs": [_numbers(runs[0], run) for run in runs]}
    more: dict[str, Any] = {"steps": runs[0].steps} if len(runs) == 1 else {}
    groups = seeds.pooled(runs)
    more |= {"seeds": seeds.as_json(groups)} if seeds.are_seeds(groups) else {}
    return found | more | {"sections": [section.name for section in sections if section.is_drawn]}


def _numbers(first: Run, run: Run) -> dict[str, Any]:
    ledger, accuracy = Ledger(run), dict[str, dict[str, Any]]()
    totals = {name: vars(ledger.totals(all_in)) for name, all_in in (("learner_only", False), ("all_in", True))}
    for key in run.keys:
        step, value = run.series(key)[-1]
        accuracy[key] = {"last": value, "step": step, "ci95": run.interval(key, step, value)}
        if run is not first and (other := difference(first, run, key)):
            accuracy[key]["difference"] = vars(other)
    return {"name": run.name, "folder": str(run.folder), "steps": run.steps, "accuracy": accuracy, "cost": totals}
