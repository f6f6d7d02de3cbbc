"""Stages that make data: the toy world, and two random halves of a parquet file's prompts.

``python -m s2l_ext.pipeline.data --data FILE --out FOLDER --seed N --names 1H 2H`` halves; rows of one prompt stay
together.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from s2l_ext.config.limits import limited
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.stage import S2L, Command, Kind, Place, Prepared
from s2l_ext.utils.refusal import guarded


@dataclass(frozen=True)
class ToyOptions:
    """``sizes``: toy models to pre-train. ``seed``: of data and pre-training."""

    sizes: list[Any] = field(default_factory=lambda: ["medium", "large"])
    seed: int = 0


class Toy(Kind):
    """``s2l data toy``: models and data files from nothing."""

    options: type = ToyOptions

    def prepare(self, place: Place, options: ToyOptions) -> Prepared:
        place.allow_inputs()
        words = ("--out", str(place.run), "--sizes", ",".join(map(str, options.sizes)), "--seed", str(options.seed))
        command = Command((*S2L, "data", "toy", *words))
        return Prepared([command], settings=asdict(options))


@dataclass(frozen=True)
class SplitOptions:
    """``seed`` of the shuffle; ``names`` of the two halves' files, without ``.parquet``."""

    seed: int = limited(42, at_least=0)
    names: list[Any] = field(default_factory=lambda: ["1H", "2H"])


class Split(Kind):
    """Two random halves of a file's prompts."""

    options: type = SplitOptions

    def prepare(self, place: Place, options: SplitOptions) -> Prepared:
        place.allow_inputs("data")
        names = [str(name) for name in options.names]
        if len(set(names)) != 2:
            raise ConfigError(f"stage {place.stage.name}: options.names={names} must be two different names.")
        words = ("--data", place.one("data"), "--out", str(place.run), "--seed", str(options.seed), "--names", *names)
        return Prepared([Command((sys.executable, "-m", "s2l_ext.pipeline.data", *words))], settings=asdict(options))


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
    halves = [(out / f"{name}.parquet", mask) for name, mask in zip(names, (chosen, ~chosen), strict=True)]
    for path, mask in halves:
        partial = path.with_name(f".{path.name}.partial")
        pq.write_table(table.filter(pa.array(mask)), partial)
        os.replace(partial, path)
        print(f"{path}: {mask.sum()} rows")
    return [path for path, _ in halves]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m s2l_ext.pipeline.data", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--names", nargs=2, default=["1H", "2H"])

    def run(args: argparse.Namespace) -> None:
        split(args.data.expanduser(), args.out, args.seed, args.names)

    return guarded(run, parser.parse_args(argv))


if __name__ == "__main__":
    sys.exit(main())
