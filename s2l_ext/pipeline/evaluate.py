"""Stages of kind ``evaluate``: ``s2l eval`` of models on the same problems. What it would refuse is refused at once."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NoReturn

from s2l_ext.config.limits import limited
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.stage import S2L, Command, Kind, Place, Prepared, in_stage
from s2l_ext.utils import json_text

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

    def prepare(self, place: Place, options: EvaluateOptions) -> Prepared:
        place.allow_inputs("models", "data", "teacher")
        models, data = _evaluated(place), place.paths("data")
        if not models or not data:
            raise ConfigError(f"stage {place.stage.name}: give inputs.models, the models to evaluate, and inputs.data.")
        commands = [self.command(place, name, path, options) for name, path in models.items()]
        return sampling(place, "eval", asdict(options), commands, _words(place, *list(models.items())[-1], options))

    def command(self, place: Place, name: str, path: str, options: EvaluateOptions) -> Command:
        """Evaluation of one model."""
        return Command((*S2L, "eval", *_words(place, name, path, options)), _result_file(place, name))

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        del prepared
        return {"evaluation": {name: _evaluation(_result_file(place, name)) for name in _evaluated(place)}}


def _evaluated(place: Place) -> dict[str, str]:
    """Name and path of every model, the teacher first, each once."""
    inputs = place.inputs()
    return {source.ref: path for name in ("teacher", "models") for source, path in inputs.get(name, [])}


def _result_file(place: Place, name: str) -> Path:
    return place.run / f"{name.replace('/', '_')}.json"


def _words(place: Place, name: str, model: str, options: EvaluateOptions) -> tuple[str, ...]:
    """What follows ``s2l eval`` for one model."""
    beside = [
        ("--divergence-to", path, "--teacher-rollouts", f"{_result_file(place, teacher.ref)}.samples.jsonl")
        for teacher, path in place.inputs().get("teacher", [])
        if teacher.ref != name
    ]
    return sampling_words(place, model, str(_result_file(place, name)), options) + (beside[0] if beside else ())


def _evaluation(path: Path) -> dict[str, Any]:
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


# ---- stages that sample, checked before anything runs ---------------------------------------------------------------


def sampling_words(place: Place, model: str, out: str, options: Any) -> tuple[str, ...]:
    """Words that ``s2l eval`` and ``s2l explore`` have in common."""
    files = (word for file in place.paths("data") for word in ("--data", file))
    sampled = ("--n", str(options.n), "--temperature", f"{options.temperature:g}")
    return ("--model", model, *files, "--out", out, *sampled, *map(str, options.args))


def sampling(
    place: Place, command: str, options: dict[str, Any], commands: list[Command], words: Sequence[str]
) -> Prepared:
    """A stage of commands of which the last has ``words``, parsed and checked; no model or data is opened.

    Raises:
        ConfigError, DataError: for what ``s2l eval`` or ``s2l explore`` would refuse, with the stage's name.
    """
    folder = {"eval": "s2l_ext.evaluation", "explore": "s2l_ext.explore"}[command]
    arguments, run = (importlib.import_module(f"{folder}.{name}") for name in ("arguments", "run"))
    parser = _Parser(prog=f"s2l {command}", add_help=False)
    arguments.add_arguments(parser)
    with in_stage(place.stage.name):
        args = parser.parse_intermixed_args(list(words))
        job = arguments.job_of(args)
        run.check(job)
    engines = job.placement.engines if command == "explore" else 1
    return Prepared(
        commands,
        settings={**options, "data": [place.pipeline.relative(file) for file in place.paths("data")]},
        files=list(_files(args, job)),
        accelerators=job.machine.tensor_parallel * engines,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"options.args: {message}. `{self.prog} --help` lists the words.")


def _files(args: argparse.Namespace, job: Any) -> Iterator[str]:
    """Local files besides the data that decide what the command finds: a benchmark and rewards of one's own."""
    if job.benchmark is not None and Path(args.benchmark).expanduser().is_file():
        yield args.benchmark
    for reward in (job.reward, job.benchmark and job.benchmark.reward):
        if reward and (file := _module_file(reward.partition(":")[0])):
            yield file


def _module_file(name: str) -> str | None:
    """Source file of a module, found without importing it; None when there is none."""
    path: Sequence[str] | None = [os.getcwd(), *sys.path]
    spec, parts = None, name.split(".")
    for number in range(1, len(parts) + 1):
        spec = PathFinder.find_spec(".".join(parts[:number]), path) if path is not None else None
        path = spec.submodule_search_locations if spec else None
    return spec.origin if spec and spec.origin and Path(spec.origin).is_file() else None
