"""Stages that train nothing: the toy world, halves of a data file, evaluation of models."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.config.limits import limited
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.eval_words import understand
from s2l_ext.pipeline.kinds import Command, Place, Prepared, allow_inputs, relative
from s2l_ext.utils import json_text

S2L = (sys.executable, "-m", "s2l_ext.cli")


class Keeps:
    """What such a stage wrote stays where it is."""

    needs_recipe = False
    makes_model = False
    reproducible = True

    def finished(self, place: Place, prepared: Prepared) -> bool:
        del place
        return bool(prepared.commands) and all(c.gives is not None and c.gives.is_file() for c in prepared.commands)

    def exported(self, place: Place) -> Path:
        return place.run

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        del place, prepared
        return {}


@dataclass(frozen=True)
class ToyOptions:
    """``sizes``: toy models to pre-train. ``seed``: of data and pre-training."""

    sizes: list[Any] = field(default_factory=lambda: ["medium", "large"])
    seed: int = 0


class Toy(Keeps):
    """``s2l data toy``: models and data files from nothing."""

    options: type = ToyOptions

    def prepare(self, place: Place, options: ToyOptions) -> Prepared:
        allow_inputs(place, {})
        sizes = ",".join(map(str, options.sizes))
        words = ("data", "toy", "--out", str(place.run), "--sizes", sizes, "--seed", str(options.seed))
        return Prepared([Command((*S2L, *words))], settings=asdict(options))


@dataclass(frozen=True)
class SplitOptions:
    """``seed`` of the shuffle; ``names`` of the two halves' files, without ``.parquet``."""

    seed: int = limited(42, at_least=0)
    names: list[Any] = field(default_factory=lambda: ["1H", "2H"])


class Split(Keeps):
    """Two random halves of a file's prompts."""

    options: type = SplitOptions

    def prepare(self, place: Place, options: SplitOptions) -> Prepared:
        allow_inputs(place, {"data": ""})
        names = [str(name) for name in options.names]
        if len(set(names)) != 2:
            raise ConfigError(f"stage {place.stage.name}: options.names={names} must be two different names.")
        words = ["--data", place.one("data"), "--out", str(place.run), "--seed", str(options.seed), "--names", *names]
        command = (sys.executable, "-m", "s2l_ext.pipeline.split", *words)
        return Prepared([Command(command)], settings=asdict(options))


@dataclass(frozen=True)
class EvaluateOptions:
    """``n`` answers per problem at ``temperature``; ``args`` are more words for ``s2l eval``."""

    n: int = limited(1, at_least=1)
    temperature: float = limited(1.0, at_least=0)
    args: list[Any] = field(default_factory=list)


class Evaluate(Keeps):
    """``s2l eval`` of every model on the same problems; an interrupted stage keeps the models that it has done.

    With ``inputs.teacher`` the teacher comes first, and of every other model the forward KL to it on the teacher's
    answers and the reverse KL on the model's own are measured too.
    """

    options: type = EvaluateOptions
    reproducible = False  # seconds are among the numbers

    def prepare(self, place: Place, options: EvaluateOptions) -> Prepared:
        allow_inputs(place, {"models": "", "data": "", "teacher": ""})
        data, models = place.inputs().get("data", []), _evaluated(place)
        if not models or not data:
            raise ConfigError(f"stage {place.stage.name}: give inputs.models, the models to evaluate, and inputs.data.")
        files = [path for _, path in data]
        commands = [self._command(place, path, name, files, options) for name, path in models]
        asked = understand(place.stage.name, _words(place, models[-1][1], models[-1][0], files, options))
        return Prepared(
            commands,
            settings={**asdict(options), "data": [relative(place.pipeline, file) for file in files]},
            files=asked.files,
            accounting={"accelerators": asked.accelerators},
        )

    def _command(self, place: Place, model: str, name: str, data: list[str], options: EvaluateOptions) -> Command:
        return Command((*S2L, "eval", *_words(place, model, name, data, options)), _result_file(place, name))

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        models = [name for name, _ in _evaluated(place)]
        files = [command.gives for command in prepared.commands]
        return {"evaluation": {name: _evaluation(file) for name, file in zip(models, files, strict=True) if file}}


def _words(place: Place, model: str, name: str, data: list[str], options: EvaluateOptions) -> tuple[str, ...]:
    """What follows ``s2l eval`` for one model."""
    files = (word for file in data for word in ("--data", file))
    out = ("--out", str(_result_file(place, name)))
    sampling = ("--n", str(options.n), "--temperature", f"{options.temperature:g}")
    return ("--model", model, *files, *out, *sampling, *map(str, options.args), *_beside_teacher(place, name))


def _evaluated(place: Place) -> list[tuple[str, str]]:
    """Name and path of every model, the teacher first, each once."""
    inputs = place.inputs()
    return list({ref.ref: path for name in ("teacher", "models") for ref, path in inputs.get(name, [])}.items())


def _result_file(place: Place, name: str) -> Path:
    return place.run / f"{name.replace('/', '_')}.json"


def _beside_teacher(place: Place, name: str) -> tuple[str, ...]:
    for teacher, path in place.inputs().get("teacher", []):
        if teacher.ref != name:
            rollouts = f"{_result_file(place, teacher.ref)}.samples.jsonl"
            return ("--divergence-to", path, "--teacher-rollouts", rollouts)
    return ()


DIVERGENCES = tuple(f"{kind}_kl_per_token{end}" for kind in ("forward", "reverse") for end in ("", "_standard_error"))


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
