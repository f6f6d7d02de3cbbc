"""Stages that are one command: the toy world, what ``s2l data`` converts, halves of a file's prompts, ``s2l eval`` of
models on the same problems, ``s2l explore``. What the command would refuse is refused before anything runs.

``python -m s2l_ext.pipeline.commands FILE FOLDER SEED NAME NAME`` halves; rows of one prompt stay together.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pyarrow.parquet as pq

from s2l_ext.config.limits import limited
from s2l_ext.config.model_files import parameter_count
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
from s2l_ext.pipeline.stage import S2L, Command, Job, Kind, Stage, in_stage
from s2l_ext.report.ledger import FORWARD
from s2l_ext.rewards.registry import place_of
from s2l_ext.store.reader import is_store, read_manifest
from s2l_ext.store.stats import stats
from s2l_ext.utils import json_text
from s2l_ext.utils.files import replacing
from s2l_ext.utils.refusal import run_cli
from s2l_ext.utils.sources import source_file

CONVERTERS = (Gsm8k, OpenR1, S1K, Dapo, HumanEval, UserJsonl)
DIVERGENCES = tuple(f"{kind}_kl_per_token{end}" for kind in ("forward", "reverse") for end in ("", "_standard_error"))


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
        return Job([Command((sys.executable, "-m", "s2l_ext.pipeline.commands", *words))], settings=asdict(options))


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


@dataclass(frozen=True)
class EvaluateOptions:
    """``n`` answers per problem at ``temperature``; ``args`` are more words for ``s2l eval``."""

    n: int = limited(1, at_least=1)
    temperature: float = limited(1.0, at_least=0)
    args: list[Any] = field(default_factory=list)


class Evaluate(Kind):
    """``s2l eval`` of every model on the same problems; an interrupted stage keeps the models that it has done.

    With ``inputs.teacher`` the teacher comes first, and of every other model the forward KL to it on the teacher's
    answers and the reverse KL on the model's own are measured too.
    """

    options: type = EvaluateOptions
    reproducible = False  # seconds are among the numbers

    def prepare(self, stage: Stage, options: EvaluateOptions) -> Job:
        stage.allow_inputs("models", "data", "teacher")
        models = _models_of(stage)
        if not models or not stage.paths("data"):
            raise ConfigError(f"stage {stage.name}: give inputs.models, the models to evaluate, and inputs.data.")
        return sampling_job(stage, "eval", [_evaluation(stage, *model, options) for model in models.items()], options)

    def result(self, stage: Stage) -> dict[str, Any]:
        return {"evaluation": {name: _read_result(_result_file(stage, name)) for name in _models_of(stage)}}


def _evaluation(stage: Stage, name: str, path: str, options: EvaluateOptions) -> Command:
    """Of one model."""
    out = _result_file(stage, name)
    words = sampling_words(stage, path, out, options)
    for teacher in [source for source in stage.given.get("teacher", ()) if source.ref != name][:1]:
        rollouts = f"{_result_file(stage, teacher.ref)}.samples.jsonl"
        words += ("--divergence-to", teacher.path, "--teacher-rollouts", rollouts)
    return Command((*S2L, "eval", *words), out)


def _models_of(stage: Stage) -> dict[str, str]:
    """Name and path of every model, the teacher first, each once."""
    return {source.ref: source.path for name in ("teacher", "models") for source in stage.given.get(name, ())}


def _result_file(stage: Stage, name: str) -> Path:
    return stage.run / f"{name.replace('/', '_')}.json"


def _read_result(path: Path) -> dict[str, Any]:
    """Accuracy (0..1), its standard error over problems (None for one problem), the number of problems, and the
    divergences from the teacher (nats per token) where they were measured."""
    try:
        content = json_text.loads(path.read_text())
        error = content["standard_error"]
        return {
            "accuracy": float(content["accuracy"]),
            "standard_error": None if error is None else float(error),
            "problems": len(content["problems"]),
            **{name: content[name] for name in DIVERGENCES if name in content},
        }
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{path}: not the result of an evaluation ({error!r}): it needs accuracy, standard_error and problems. "
            "Remove the file to evaluate again."
        ) from error


@dataclass(frozen=True)
class ExploreOptions(EvaluateOptions):
    """Likewise for ``s2l explore``, of rollouts."""

    n: int = limited(32, at_least=1)
    temperature: float = limited(0.7, at_least=0)


class Explore(Kind):
    """``s2l explore``; an interrupted stage keeps every rollout that was graded."""

    options: type = ExploreOptions
    reproducible = False  # responses are stored as they finish

    def prepare(self, stage: Stage, options: ExploreOptions) -> Job:
        stage.allow_inputs("model", "data")
        if not stage.paths("data"):
            raise ConfigError(f"stage {stage.name}: give inputs.data, the prompts to sample answers for.")
        words = sampling_words(stage, stage.one("model"), stage.run, options)
        return sampling_job(stage, "explore", [Command((*S2L, "explore", *words))], options)

    def finished(self, stage: Stage, job: Job) -> bool:
        """The store says that its request was carried out."""
        return is_store(stage.run) and read_manifest(stage.run).complete

    def result(self, stage: Stage) -> dict[str, Any]:
        store, size = stats(stage.run), parameter_count(stage.one("model"))
        tokens = store["prompt_tokens"] + store["response_tokens"]
        flops = None if size is None else float(FORWARD * size * tokens)
        return {"rollouts": store["responses"], "tokens": tokens, "flops": {"sampling": flops, "total": flops}}


# ---- what both have in common --------------------------------------------------------------------------------------


def sampling_words(stage: Stage, model: str, out: Path, options: EvaluateOptions) -> tuple[str, ...]:
    files = (word for file in stage.paths("data") for word in ("--data", file))
    sampled = ("--n", str(options.n), "--temperature", f"{options.temperature:g}")
    return ("--model", model, *files, "--out", str(out), *sampled, *map(str, options.args))


def sampling_job(stage: Stage, command: str, commands: list[Command], options: EvaluateOptions) -> Job:
    """The stage, once the words of the last command are parsed and checked; no model or data is opened.

    Raises:
        ConfigError, DataError: for what ``s2l eval`` or ``s2l explore`` would refuse, with the stage's name.
    """
    folder = {"eval": "s2l_ext.evaluation", "explore": "s2l_ext.explore"}[command]
    arguments, run = (importlib.import_module(f"{folder}.{name}") for name in ("arguments", "run"))
    parser = WordsParser(prog=f"s2l {command}", add_help=False)
    arguments.add_arguments(parser)
    with in_stage(stage.name):
        args = parser.parse_intermixed_args(commands[-1].words[len(S2L) + 1 :])
        job = arguments.job_of(args)
        run.check(job)
    engines = job.placement.engines if command == "explore" else 1
    return Job(
        commands,
        settings={**asdict(options), "data": [stage.relative(file) for file in stage.paths("data")]},
        files=list(_own_files(stage, args, job)),
        accelerators=job.machine.tensor_parallel * engines,
    )


class WordsParser(argparse.ArgumentParser):
    """Refuses as the pipeline does, in place of ending the program."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"options.args: {message}. `{self.prog} --help` lists the words.")


def _own_files(stage: Stage, args: argparse.Namespace, job: Any) -> Iterator[str]:
    """Local files besides the inputs that decide what the command finds: your own benchmark, rewards and teacher."""
    if job.benchmark is not None and Path(args.benchmark).expanduser().is_file():
        yield args.benchmark
    for reward in (job.reward, job.benchmark and job.benchmark.reward):
        if reward and (file := source_file(place_of(reward))):
            yield file
    for name in ("divergence_to", "teacher_rollouts"):
        path = getattr(args, name, None)
        if path and "teacher" not in stage.given and Path(path).expanduser().exists():
            yield str(path)


def main(args: argparse.Namespace) -> None:
    data, out, seed, *names = args.words
    split(Path(data).expanduser(), Path(out), int(seed), names)


if __name__ == "__main__":
    sys.exit(run_cli(main, argparse.Namespace(words=sys.argv[1:])))
