"""Stages that make data: the toy world, what ``s2l data`` converts, and two random halves of a parquet file's prompts.

``python -m s2l_ext.pipeline.data FILE FOLDER SEED NAME NAME`` halves; rows of one prompt stay together.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from s2l_ext.config.limits import limited
from s2l_ext.config.nearest import did_you_mean
from s2l_ext.data.command import check_words
from s2l_ext.data.dapo import Dapo
from s2l_ext.data.gsm8k import Gsm8k
from s2l_ext.data.humaneval import HumanEval
from s2l_ext.data.openr1 import OpenR1
from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.data.s1k import S1K
from s2l_ext.data.user_jsonl import UserJsonl
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.sampling import WordsParser
from s2l_ext.pipeline.stage import S2L, Command, Job, Kind, Stage, in_stage
from s2l_ext.utils.files import replacing
from s2l_ext.utils.refusal import run_cli

CONVERTERS = (Gsm8k, OpenR1, S1K, Dapo, HumanEval, UserJsonl)


@dataclass(frozen=True)
class ToyOptions:
    """``sizes``: toy models to pre-train. ``seed``: of data and pre-training. ``family``: as of ``s2l data toy``."""

    sizes: list[Any] = field(default_factory=lambda: ["medium", "large"])
    seed: int = 0
    family: str = "made"


class Toy(Kind):
    """``s2l data toy``: models and data files from nothing."""

    options: type = ToyOptions

    def prepare(self, stage: Stage, options: ToyOptions) -> Job:
        stage.allow_inputs()
        words = ["--out", str(stage.run), "--sizes", ",".join(map(str, options.sizes)), "--seed", str(options.seed)]
        words += ["--family", options.family] if options.family != "made" else []
        return Job([Command((*S2L, "data", "toy", *words))], settings=asdict(options))


@dataclass(frozen=True)
class ConvertOptions:
    """``command``: the word after ``s2l data``; ``args``: more words for it."""

    command: str
    args: list[Any] = field(default_factory=list)


class Convert(Kind):
    """``s2l data COMMAND`` of files, or of the hub, ``hf://owner/name[:config][@split]``."""

    options: type = ConvertOptions

    def prepare(self, stage: Stage, options: ConvertOptions) -> Job:
        stage.allow_inputs("data")
        known = {kind.command: kind for kind in CONVERTERS}
        if options.command not in known:
            raise ConfigError(
                f"stage {stage.name}: options.command={options.command!r} does not exist."
                f"{did_you_mean(options.command, known)} Commands: {', '.join(known)}."
            )
        if not stage.paths("data"):
            raise ConfigError(f"stage {stage.name}: give inputs.data, the files to convert or hf:// addresses.")
        words = ("--input", *stage.paths("data"), "--out", str(stage.run), *map(str, options.args))
        with in_stage(stage.name):
            parser = WordsParser(prog=f"s2l data {options.command}", add_help=False)
            check_words(known[options.command], parser, words)
        return Job([Command((*S2L, "data", options.command, *words))], settings=asdict(options))


@dataclass(frozen=True)
class SplitOptions:
    """``seed`` of the shuffle; ``names`` of the two halves' files, without ``.parquet``."""

    seed: int = limited(42, at_least=0)
    names: list[Any] = field(default_factory=lambda: ["1H", "2H"])


class Split(Kind):
    """Two random halves of a file's prompts."""

    options: type = SplitOptions

    def prepare(self, stage: Stage, options: SplitOptions) -> Job:
        stage.allow_inputs("data")
        names = [str(name) for name in options.names]
        if len(set(names)) != 2:
            raise ConfigError(f"stage {stage.name}: options.names={names} must be two different names.")
        words = (stage.one("data"), str(stage.run), str(options.seed), *names)
        return Job([Command((sys.executable, "-m", "s2l_ext.pipeline.data", *words))], settings=asdict(options))


def split(data: Path, out: Path, seed: int, names: Sequence[str]) -> list[Path]:
    """Write ``<out>/<name>.parquet`` for both names; rows keep their order. Of an odd number the first has one more.

    Raises:
        DataError: the file is missing or unreadable, or has fewer than two prompts.
    """
    ids = prompt_ids(parquet_table([data]))
    distinct = sorted(set(ids))
    if len(distinct) < 2:
        raise DataError(f"{data}: {len(distinct)} prompts cannot be halved.")
    first = np.random.default_rng(seed).permutation(distinct)[: (len(distinct) + 1) // 2]
    table, chosen = pq.read_table(data), np.isin(ids, first)
    halves = [out / f"{name}.parquet" for name in names]
    for path, rows in zip(halves, (chosen, ~chosen), strict=True):
        with replacing(path) as partial:
            pq.write_table(table.filter(rows), partial)
        print(f"{path}: {rows.sum()} rows")
    return halves


def main(args: argparse.Namespace) -> None:
    data, out, seed, *names = args.words
    split(Path(data).expanduser(), Path(out), int(seed), names)


if __name__ == "__main__":
    sys.exit(run_cli(main, argparse.Namespace(words=sys.argv[1:])))
