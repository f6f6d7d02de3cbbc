"""``s2l report``: what a run's folder says, as HTML files that need nothing else."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from s2l_ext.errors import DataError
from s2l_ext.report import curriculum, overview, stages
from s2l_ext.report.run import Run, read_run
from s2l_ext.report.style import GENERATOR, Section

INDEX, CURRICULUM = "index.html", "curriculum.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l report``."""
    parser.add_argument(
        "run", type=Path, metavar="RUN_FOLDER", help="a run's trainer.default_local_dir, or the output of s2l pipeline"
    )
    parser.add_argument("--out", type=Path, default=None, metavar="DIR", help="default: RUN_FOLDER/report")
    parser.add_argument("--json", action="store_true", help="print the pages, steps and sections as JSON")


def main(args: argparse.Namespace) -> int:
    """``s2l report``."""
    out = args.run / "report" if args.out is None else args.out
    if stages.is_pipeline(args.run):
        return _report_pipeline(args, out)
    run = read_run(args.run)
    pages, sections = write_pages(run, out)
    if args.json:
        found = {"pages": [str(page) for page in pages], "steps": run.steps}
        print(json.dumps(found | {"sections": [section.name for section in sections if section.is_drawn]}))
        return 0
    print(f"{overview.count_steps(run)}. Open {pages[0]}" + (f" (it links to {pages[1].name})." if pages[1:] else "."))
    if not pages[1:]:
        print(overview.NO_EXTRAS)
    return 0


def _report_pipeline(args: argparse.Namespace, out: Path) -> int:
    found = stages.read_stages(args.run)
    sections = stages.sections(found)
    _clear(out)
    (out / INDEX).write_text(stages.page(args.run.resolve().name, args.run, sections), encoding="utf-8")
    names = [section.name for section in sections if section.is_drawn]
    if args.json:
        print(json.dumps({"pages": [str(out / INDEX)], "stages": [stage.name for stage in found], "sections": names}))
    else:
        print(f"{len(found)} training stages. Open {out / INDEX}.")
    return 0


def write_pages(run: Run, out: Path) -> tuple[list[Path], list[Section]]:
    """The pages written, the general one first, and all their sections.

    Raises:
        DataError: ``out`` cannot be written, or holds a page of the same name that this command did not make.
    """
    found, more = overview.sections(run), curriculum.sections(run) if run.has_kl or run.has_curriculum else []
    pages = {INDEX: overview.page(run, found, CURRICULUM if more else None)}
    if more:
        pages[CURRICULUM] = curriculum.page(run, more, INDEX)
    _clear(out)
    for name, text in pages.items():
        (out / name).write_text(text, encoding="utf-8")
    return [out / name for name in pages], [*found, *more]


def _clear(out: Path) -> None:
    """Make the folder, and remove an earlier report: this run may have fewer pages."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{out}: cannot be made ({error.strerror}). Choose another folder with --out.") from error
    for path in (out / INDEX, out / CURRICULUM):
        if not path.exists():
            continue
        if GENERATOR not in path.read_text(encoding="utf-8", errors="replace")[:200]:
            raise DataError(f"{path}: not made by s2l report, so it is kept. Choose another folder with --out.")
        path.unlink()
