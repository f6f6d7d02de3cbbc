"""Every measurement of speed in one command; JSON lines to a file, one table at the end.

    make bench                          (python benchmarks/bench.py --out outputs/bench.jsonl)
    make bench ARGS="--only driver store"

Each part is a script that runs alone too. A line says how many cores other processes used meanwhile; from a quarter of
a core on, the table says so and shows CPU seconds alone, which other work moves less.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from measuring import BUSY_CORES, commit

HERE = Path(__file__).parent
PARTS: dict[str, list[str]] = {
    "driver": ["driver_step.py", "--prompts", "256", "512", "1024"],
    "store": ["store_scale.py"],
    "chunks": ["chunk_size.py"],
    "curriculum": ["curriculum.py", "--num-prompts", "10000000", "--repeats", "60"],
    "explore": ["explore.py"],
    "off": ["overhead.py", "--rounds", "2", "--steps", "12"],
}
"""The first three write JSON lines, the others their own tables."""
WRITES_LINES = ("driver", "store", "chunks")
SHOWN = ("what", "arm", "variant", "chunk", "prompts", "responses", "tokens")


def table(lines: list[dict]) -> str:
    rows = [
        "| benchmark | what | seconds | CPU seconds | peak MB | queue reads, MB fetched |",
        "|---|---|---|---|---|---|",
    ]
    for line in lines:
        what = ", ".join(f"{name} {line[name]}" if name != "what" else line[name] for name in SHOWN if name in line)
        busy = line.get("other_cores", 0.0) > BUSY_CORES
        seconds = f"busy: {line['other_cores']:.1f} other cores" if busy else f"{line['seconds']:.2f}"
        reads = f"{line['queue_reads']}, {line['mb_fetched']:.1f}" if "queue_reads" in line else ""
        peak = f"{line['peak_mb']:.0f}" if "peak_mb" in line else ""
        rows.append(f"| {line['benchmark']} | {what} | {seconds} | {line['cpu_seconds']:.2f} | {peak} | {reads} |")
    return "\n".join(rows)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench.jsonl"))
    args = parser.parse_args()
    args.out.unlink(missing_ok=True)
    failed = []
    for part in args.only:
        script, *words = PARTS[part]
        words += ["--out", str(args.out)] if part in WRITES_LINES else []
        print(f"bench: {part}", file=sys.stderr)
        if subprocess.run([sys.executable, str(HERE / script), *words]).returncode:
            failed.append(part)
    lines = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    print(f"\ncommit {commit()}\n\n{table(lines)}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
