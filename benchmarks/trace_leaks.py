"""How often does guidance with ``stop_before_answer`` still hold the right answer, and how much of a trace is left?

    python benchmarks/trace_leaks.py FILE.jsonl [FILE.jsonl.gz ...]

Each line has ``trace`` or ``solution``, and ``answer`` (without it the content of the last box). GSM8K's calculator
marks and ``####`` line are taken out, as ``s2l data gsm8k`` does.
"""

from __future__ import annotations

import argparse
import gzip
import json
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from s2l_ext.data import gsm8k
from s2l_ext.methods.guidance.client import usable_text
from s2l_ext.rewards.extraction import boxes

RESULT = re.compile(r"=\s*\\?\$?\s*(-?[\d,]+(?:\.\d+)?)(?![\d^*/+\\a-z])")


def rows_of(path: Path) -> Iterator[tuple[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open(encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            trace = row.get("trace") or row["solution"]
            if "<<" in trace:
                trace = gsm8k.trace_of(trace)
            marked = boxes(trace)
            answer = row.get("answer") or (trace[marked[-1][1] : marked[-1][2] - 1] if marked else None)
            if trace and answer:
                yield trace, answer


def measure(path: Path) -> str:
    counts, shares = [0] * 4, []
    for trace, answer in rows_of(path):
        left = usable_text(trace, True, False, answer)
        alone = rf"(?<![\w.]){re.escape(answer)}(?![\w]|[.,]\d)"
        results = RESULT.findall(left)
        found = (
            any(left[inside : end - 1].strip() == answer for _, inside, end in boxes(left)),
            re.search(rf"(?i)answer (?:is|=|:)\W*{alone}", left),
            results and results[-1].replace(",", "") == answer.replace(",", ""),
            re.search(alone, left[-80:]),
        )
        counts = [count + bool(hit) for count, hit in zip(counts, found, strict=True)]
        shares.append(len(left) / len(trace))
    cells = [len(shares), *counts, f"{statistics.median(shares):.1%}", sum(share < 0.2 for share in shares)]
    return f"| {path.name} | {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    head = ("traces", "rows", "in a box", "announced", "last result", "last 80 characters", "median left", "under 20 %")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for path in parser.parse_args().files:
        print(measure(path), flush=True)


if __name__ == "__main__":
    main()
