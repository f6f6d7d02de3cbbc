"""What pipelines are made of: stages, what each takes and gives, and what one kind of stage decides."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError, S2LError

S2L = (sys.executable, "-m", "s2l_ext.cli")


@dataclass(frozen=True)
class Source:
    """Where an input comes from: a path of this machine or hub id, or a stage's output (``part`` below it)."""

    ref: str
    path: str | None = None
    stage: str | None = None
    part: str = ""


@dataclass(frozen=True)
class Input:
    """What a stage is given: names of models, splits or stages, and the override keys that they are set as.

    ``keys`` None means those of the stage's kind.
    """

    refs: tuple[str, ...]
    keys: tuple[str, ...] | None = None
    is_list: bool = False


@dataclass(frozen=True)
class Stage:
    """A stage as understood. ``labels`` None: decided by the recipe's loss. ``output``: folder below ``models/``."""

    name: str
    kind: str
    recipe: str | None
    inputs: dict[str, Input]
    overrides: tuple[str, ...]
    options: dict[str, Any]
    labels: bool | None
    output: str
    does: Kind
    sources: dict[str, list[Source]]

    @property
    def upstream(self) -> list[str]:
        """Names of the stages that it takes something from, each once."""
        found = [source.stage for group in self.sources.values() for source in group if source.stage]
        return list(dict.fromkeys(found))

    @property
    def definition(self) -> dict[str, Any]:
        """As written, without the name: what the fingerprint holds of it."""
        return {key: value for key, value in asdict(self).items() if key not in ("does", "sources")} | {"name": ""}


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as understood.

    Attributes:
        out: absolute output folder.
        stages: each after those that it takes from, else in the order of the file.
        models: name -> Hugging Face folder, hub id, or ``stage:STAGE/part``.
        overrides: Hydra overrides of every train stage, before the stage's own.
    """

    name: str
    out: Path
    stages: tuple[Stage, ...]
    models: dict[str, str]
    overrides: tuple[str, ...]
    allow_label_overlap: bool

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def stage_names(self) -> list[str]:
        return [stage.name for stage in self.stages]

    def folder(self, name: str) -> Path:
        """Log of a stage, and in ``run`` what its commands wrote."""
        return self.out / "stages" / name

    def output(self, stage: Stage) -> Path:
        """What other stages take: the exported model, or the folder that the command wrote."""
        return self.out / "models" / stage.output if stage.does.makes_model else self.folder(stage.name) / "run"

    def downstream(self, name: str) -> list[str]:
        """A stage and every stage that takes something from it, directly or not, in order."""
        found = [name]
        for stage in self.stages:
            if set(found).intersection(stage.upstream):
                found.append(stage.name)
        return found

    def relative(self, text: str | Path) -> str:
        """Text without the output folder's path, so that moving the folder changes nothing."""
        return re.sub(rf"{re.escape(str(self.out))}(?![^/\"'\s,\])}}])", "<out>", str(text))


@dataclass(frozen=True)
class Place:
    """A stage in its pipeline: its folders, and its inputs as paths."""

    pipeline: Pipeline
    stage: Stage

    @property
    def folder(self) -> Path:
        return self.pipeline.folder(self.stage.name)

    @property
    def run(self) -> Path:
        """What the stage's command writes into."""
        return self.folder / "run"

    def inputs(self) -> dict[str, list[tuple[Source, str]]]:
        """Every input's sources with their paths (or hub ids)."""
        return {name: [(s, self._path(s)) for s in group] for name, group in self.stage.sources.items()}

    def _path(self, source: Source) -> str:
        if source.stage is None:
            return str(source.path)
        return str(self.pipeline.output(self.pipeline.stage(source.stage)) / source.part)

    def prepare(self) -> Prepared:
        """Make the stage ready. Raises ConfigError or DataError with the stage's name."""
        options: Any = parse_block(self.stage.does.options, self.stage.options, f"stage {self.stage.name}: options")
        return self.stage.does.prepare(self, options)

    def paths(self, name: str) -> list[str]:
        return [path for _, path in self.inputs().get(name, [])]

    def one(self, name: str) -> str:
        """The path of an input that is one thing. Raises ConfigError when it is missing or several."""
        given, stage = self.paths(name), self.stage
        if len(given) != 1:
            raise ConfigError(
                f"stage {stage.name}: a stage of kind {stage.kind} needs one inputs.{name}, found {len(given)}."
            )
        return given[0]

    def allow_inputs(self, *known: str) -> None:
        """Raise ConfigError for an input that the kind does not read."""
        for name in self.stage.inputs:
            if name not in known:
                raise ConfigError(
                    f"stage {self.stage.name}: inputs.{name}: a stage of kind {self.stage.kind} reads "
                    f"{', '.join(known) or 'none'}.{did_you_mean(name, known)}"
                )


@dataclass(frozen=True)
class Command:
    """What to run. With ``gives`` the command is left out when that file is there already."""

    words: tuple[str, ...]
    gives: Path | None = None


SameTokens = tuple[tuple[str, str], tuple[str, str], bool]
"""Setting and path of the model that makes prompts and of one that is given them; whether their own code may run."""


@dataclass(frozen=True)
class Prepared:
    """A stage made ready; nothing has run.

    Attributes:
        settings: everything decided by recipe, overrides and options, as plain values.
        files: local files outside the inputs whose content decides the result.
        train_files: files whose prompts the stage learns from; ``labels`` whether its loss reads their labels.
        steps: training steps, None when unknown or none.
        accelerators: that it holds, None when unknown or none.
        warnings: one sentence each, shown when the pipeline starts.
        same_tokens: models whose tokenizers are compared as soon as both are there.
    """

    commands: list[Command]
    settings: Mapping[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    train_files: list[str] = field(default_factory=list)
    labels: bool = False
    steps: int | None = None
    accelerators: int | None = None
    warnings: list[str] = field(default_factory=list)
    same_tokens: list[SameTokens] = field(default_factory=list)


@dataclass(frozen=True)
class NoOptions:
    """Of a kind that has none."""


class Kind(ABC):
    """One kind of stage; by default one that trains nothing, and what it wrote stays where it is.

    Attributes:
        options: frozen dataclass that ``options:`` of a stage is parsed with.
        makes_model: its output is a Hugging Face folder that is exported to ``models/``; else what it writes stays.
        reproducible: the bytes of its output depend on its inputs alone.
    """

    options: type = NoOptions
    needs_recipe = False
    makes_model = False
    reproducible = True

    @abstractmethod
    def prepare(self, place: Place, options: Any) -> Prepared:
        """Raises ConfigError or DataError for a stage that cannot run."""

    def finished(self, place: Place, prepared: Prepared) -> bool:
        """Whether the commands ended well, although nobody was there to write that down."""
        del place
        return bool(prepared.commands) and all(c.gives is not None and c.gives.is_file() for c in prepared.commands)

    def exported(self, place: Place) -> Path:
        """The finished model's folder, for kinds that make one."""
        return place.run

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        """What goes into the manifest besides inputs and output."""
        del place, prepared
        return {}

    def accelerator_seconds(self, place: Place, prepared: Prepared, wall_seconds: float) -> float | None:
        del place
        return None if prepared.accelerators is None else prepared.accelerators * wall_seconds


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Refusals inside begin with the stage's name."""
    try:
        yield
    except S2LError as error:
        raise type(error)(f"stage {name}: {error}") from error
