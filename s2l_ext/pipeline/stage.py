"""What pipelines are made of: stages, what each takes and gives, and what one kind of stage decides."""

from __future__ import annotations

import re
import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Any

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError, S2LError

S2L = (sys.executable, "-m", "s2l_ext.cli")


@dataclass(frozen=True)
class Source:
    """One thing that an input names: ``path`` is where it is, or a hub id; ``stage`` makes it, None for one given."""

    ref: str
    path: str
    stage: str | None = None


@dataclass(frozen=True)
class StageBlock:
    """A stage as written."""

    name: str
    kind: str
    recipe: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    overrides: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Stage(StageBlock):
    """A stage as understood.

    Attributes:
        does: what its kind decides.
        out: the pipeline's output folder.
        shared: Hydra overrides of every train stage, before its own.
        given: what its inputs name, without those that are null.
    """

    does: Kind
    out: Path
    shared: tuple[str, ...]
    given: dict[str, tuple[Source, ...]]

    @property
    def folder(self) -> Path:
        """Log of the stage, and in ``run`` what its commands wrote."""
        return self.out / "stages" / self.name

    @property
    def run(self) -> Path:
        return self.folder / "run"

    @property
    def result_folder(self) -> Path:
        """What other stages take: the exported model, or the folder that the command wrote."""
        return self.out / "models" / self.name if self.does.makes_model else self.run

    @property
    def upstream(self) -> list[str]:
        """Names of the stages that it takes something from, each once."""
        return list(dict.fromkeys(one.stage for given in self.given.values() for one in given if one.stage))

    def relative(self, text: str | Path) -> str:
        """Text without the output folder's path, so that moving the folder changes nothing."""
        return re.sub(rf"{re.escape(str(self.out))}(?![^/\"'\s,\])}}])", "<out>", str(text))

    def prepare(self) -> Job:
        """Make the stage ready. Raises ConfigError or DataError with the stage's name."""
        return self.does.prepare(self, parse_block(self.does.options, self.options, f"stage {self.name}: options"))

    def paths(self, name: str) -> list[str]:
        return [source.path for source in self.given.get(name, ())]

    def one(self, name: str) -> str:
        """The path of an input that is one thing. Raises ConfigError when it is missing or several."""
        paths = self.paths(name)
        if len(paths) != 1:
            raise ConfigError(
                f"stage {self.name}: a stage of kind {self.kind} needs one inputs.{name}, found {len(paths)}."
            )
        return paths[0]

    def allow_inputs(self, *known: str) -> None:
        """Raise ConfigError for an input that the kind does not read."""
        for name in self.given.keys() - set(known):
            raise ConfigError(
                f"stage {self.name}: inputs.{name}: a stage of kind {self.kind} reads {', '.join(known) or 'none'}."
                f"{did_you_mean(name, known)}"
            )


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as understood.

    Attributes:
        out: absolute output folder.
        stages: each after those that it takes from, else in the order of the file.
        models: name -> Hugging Face folder, hub id, or ``stage:STAGE/part``.
    """

    name: str
    out: Path
    stages: tuple[Stage, ...]
    models: dict[str, str]
    allow_label_overlap: bool

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    def downstream(self, name: str) -> list[str]:
        """A stage and every stage that takes something from it, directly or not, in order."""
        found = [name]
        for stage in self.stages:
            if set(found).intersection(stage.upstream):
                found.append(stage.name)
        return found


@dataclass(frozen=True)
class Command:
    """What to run. With ``gives`` the command is left out when that file is there already."""

    words: tuple[str, ...]
    gives: Path | None = None


SameTokens = tuple[tuple[str, str], tuple[str, str], bool]
"""Setting and path of the model that makes prompts and of one that is given them; whether their own code may run."""


@dataclass(frozen=True)
class Job:
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


NoOptions = make_dataclass("NoOptions", ())


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
    def prepare(self, stage: Stage, options: Any) -> Job:
        """Raises ConfigError or DataError for a stage that cannot run."""

    def finished(self, stage: Stage, job: Job) -> bool:
        """Whether the commands ended well, although no process was left to record it."""
        return bool(job.commands) and all(c.gives is not None and c.gives.is_file() for c in job.commands)

    def exported(self, stage: Stage) -> Path:
        """The finished model's folder, for kinds that make one."""
        return stage.run

    def result(self, stage: Stage) -> dict[str, Any]:
        """What goes into the manifest besides inputs and output."""
        return {}

    def accelerator_seconds(self, stage: Stage, job: Job, wall_seconds: float) -> float:
        return (job.accelerators or 0) * wall_seconds


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Refusals inside begin with the stage's name."""
    try:
        yield
    except S2LError as error:
        raise type(error)(f"stage {name}: {error}") from error
