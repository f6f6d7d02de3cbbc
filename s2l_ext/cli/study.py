"""``s2l study``: a claim as arms and seeds; one table with intervals, one page."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from s2l_ext.utils.refusal import EXIT_STOPPED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l study``."""
    add = parser.add_argument
    add("file", type=Path, metavar="FILE.yaml", help="the study, or its name in the recipes (studies/s2l_po)")
    add("--out", type=Path, metavar="DIR", help="where runs and table go (default outputs/study/<name>)")
    add("--engine", choices=["local", "verl"], help="takes the place of the file's")
    add("--seeds", type=int, metavar="N", help="so many seeds, from the file's first_seed on, in place of its own")
    add("--arm", action="append", default=[], metavar="NAME", help="only this arm and the baseline; repeat")
    add("--baseline", metavar="NAME", help="takes the place of the file's")
    add("--jobs", type=int, default=1, metavar="N", help="runs at a time (default %(default)s)")
    said = parser.add_mutually_exclusive_group()
    said.add_argument("--dry-run", action="store_true", help="check and say what would run")
    said.add_argument("--json", action="store_true", help="print one JSON object")


def main(args: argparse.Namespace) -> int:
    """``s2l study``. Returns 1 if a run failed or arms are not matched or may not be."""
    from s2l_ext.errors import ConfigError
    from s2l_ext.launch.compose import find_file
    from s2l_ext.studies.study.file import read_study
    from s2l_ext.studies.study.page import render
    from s2l_ext.studies.study.run import Runner
    from s2l_ext.studies.study.table import HEAD, as_json, cells, rows_of, sentences, sources
    from s2l_ext.utils.files import write_atomically
    from s2l_ext.utils.run_lock import held
    from s2l_ext.utils.text_table import text_table

    if args.jobs < 1:
        raise ConfigError(f"--jobs {args.jobs}: at least one run at a time.")
    study = read_study(find_file(args.file, "study"), args.engine, args.arm, args.seeds, args.baseline)
    out = (args.out or Path("outputs") / "study" / study.name).resolve()
    runner = Runner(study, out, args.jobs)
    runner.check()
    if args.dry_run:
        print("\n".join(runner.planned_lines()))
        return 0
    with held(out, "study", "Choose another --out"):
        try:
            results = runner.run()
        except KeyboardInterrupt:
            print("s2l study: stopped. The same command continues from here.", file=sys.stderr)
            return EXIT_STOPPED
        rows = rows_of(study, results)
        table, said = text_table(HEAD, [cells(row) for row in rows]), sentences(rows)
        head, by_source = sources(study, results)
        tables = [table, *([text_table(head, by_source)] if by_source else []), ""]
        write_atomically(out / "study.md", "\n\n".join(tables) + "".join(f"- {line}\n" for line in said))
        write_atomically(out / "study.json", json.dumps(as_json(study, rows), indent=1) + "\n")
        write_atomically(out / "study.html", render(study, rows, results))
    print(
        json.dumps(as_json(study, rows), indent=1)
        if args.json
        else "\n".join([table, "", *said, f"Open {out / 'study.html'}."])
    )
    return 1 if any(row.failed or row.unmatched or row.unknown for row in rows) else 0
