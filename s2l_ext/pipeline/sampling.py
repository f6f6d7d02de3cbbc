"""Stages that sample: ``evaluate`` (``s2l eval`` of models on the same problems) and ``explore`` (a model's rollouts,
stored for stages that train on them). What the command would refuse is refused before anything runs."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from s2l_ext.config.limits import limited
from s2l_ext.config.model_files import parameter_count
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.stage import S2L, Command, Job, Kind, Stage, in_stage
from s2l_ext.report.ledger import FORWARD
from s2l_ext.rewards.registry import place_of
from s2l_ext.store.reader import is_store, read_manifest
from s2l_ext.store.stats import stats
from s2l_ext.utils import json_text
from s2l_ext.utils.sources import source_file

DIVERGENCES = tuple(f"{kind}_kl_per_token{end}" for kind in ("forward", "reverse") for end in ("", "_standard_error"))


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
