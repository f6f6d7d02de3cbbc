"""Two random halves of a parquet file's prompts; rows of one prompt stay together.

``python -m s2l_ext.pipeline.split --data FILE --out FOLDER --seed N --names 1H 2H``
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.errors import DataError
from s2l_ext.utils.refusal import guarded


def split(data: Path, out: Path, seed: int, names: Sequence[str]) -> list[Path]:
    """Write ``<out>/<name>.parquet`` for both names; rows keep their order. Of an odd number the first has one more.

    Raises:
        DataError: the file is missing or unreadable, or has fewer than two prompts.
    """
    if not data.is_file():
        raise DataError(f"--data {data}: no such file.")
    try:
        table, ids = pq.read_table(data), prompt_ids(parquet_table([data]))
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"--data {data}: not a parquet file ({' '.join(str(error).split())[:200]}).") from error
    distinct = sorted(set(ids))
    if len(distinct) < 2:
        raise DataError(f"--data {data}: {len(distinct)} prompts cannot be halved.")
    first = set(np.random.default_rng(seed).permutation(distinct)[: (len(distinct) + 1) // 2].tolist())
    out.mkdir(parents=True, exist_ok=True)
    chosen = np.array([name in first for name in ids])
    return [
        _write(table.filter(pa.array(mask)), out / f"{name}.parquet")
        for name, mask in zip(names, (chosen, ~chosen), strict=True)
    ]


def _write(table: pa.Table, path: Path) -> Path:
    partial = path.with_name(f".{path.name}.partial")
    pq.write_table(table, partial)
    os.replace(partial, path)
    print(f"{path}: {table.num_rows} rows")
    return path


def _run(args: argparse.Namespace) -> int:
    split(Path(args.data).expanduser(), Path(args.out), args.seed, args.names)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m s2l_ext.pipeline.split", description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True)
    parser.add_argument("--out", required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--names", nargs=2, default=["1H", "2H"])
    return guarded(_run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
