"""Kinds of stages: what a stage of each kind runs, what decides its result and what it gives. A small registry."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Protocol

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError, S2LError
from s2l_ext.pipeline.graph import Source, sources
from s2l_ext.pipeline.schema import Pipeline, Stage


@dataclass(frozen=True)
class Place:
    """A stage in its pipeline: its folders, and its inputs as paths."""

    pipeline: Pipeline
    stage: Stage

    @property
    def folder(self) -> Path:
        return stage_folder(self.pipeline, self.stage.name)

    @property
    def run(self) -> Path:
        """What the stage's command writes into."""
        return self.folder / "run"

    def inputs(self) -> dict[str, list[tuple[Source, str]]]:
        """Every input's sources with their paths (or hub ids)."""
        found = sources(self.pipeline, self.stage)
        return {name: [(source, self.path_of(source)) for source in group] for name, group in found.items()}

    def path_of(self, source: Source) -> str:
        if source.stage is None:
            assert source.path is not None
            return source.path
        folder = output_folder(self.pipeline, self.pipeline.stage(source.stage))
        return str(folder / source.part)

    def one(self, name: str) -> str:
        """The path of an input that is one thing. Raises ConfigError when it is missing or several."""
        given = self.inputs().get(name, [])
        if len(given) != 1:
            raise ConfigError(
                f"stage {self.stage.name}: a stage of kind {self.stage.kind} needs one inputs.{name}, "
                f"found {len(given)}."
            )
        return given[0][1]


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
        accounting: what :mod:`s2l_ext.pipeline.accounting` needs: accelerators, model paths.
        warnings: one sentence each, shown when the pipeline starts.
        same_tokens: models whose tokenizers are compared as soon as both are there.
    """

    commands: list[Command]
    settings: dict[str, Any] = field(default_factory=dict)
    files: list[str] = field(default_factory=list)
    train_files: list[str] = field(default_factory=list)
    labels: bool = False
    steps: int | None = None
    accounting: dict[str, Any] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    same_tokens: list[SameTokens] = field(default_factory=list)


class Kind(Protocol):
    """One kind of stage.

    Attributes:
        options: frozen dataclass that ``options:`` of a stage is parsed with.
        makes_model: its output is a Hugging Face folder that is exported to ``models/``; else what it writes stays.
        reproducible: the bytes of its output hang on its inputs alone.
    """

    options: type
    needs_recipe: bool
    makes_model: bool
    reproducible: bool

    def prepare(self, place: Place, options: Any) -> Prepared:
        """Raises ConfigError or DataError for a stage that cannot run."""

    def finished(self, place: Place, prepared: Prepared) -> bool:
        """Whether the commands ended well, although nobody was there to write that down."""

    def exported(self, place: Place) -> Path:
        """The finished model's folder, for kinds that make one."""

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        """What goes into the manifest besides inputs and output."""


KINDS: dict[str, Kind] = {}


def kind_of(stage: Stage) -> Kind:
    """Raises ConfigError for a kind that does not exist, or a recipe where none belongs or none is."""
    _load_kinds()
    if stage.kind not in KINDS:
        raise ConfigError(
            f"stage {stage.name}: kind={stage.kind!r} does not exist.{did_you_mean(stage.kind, KINDS)} "
            f"Kinds: {', '.join(KINDS)}."
        )
    kind = KINDS[stage.kind]
    if kind.needs_recipe and stage.recipe is None:
        raise ConfigError(f"stage {stage.name}: recipe is missing. Name a training recipe, such as recipe: grpo/toy.")
    if not kind.needs_recipe:
        _refuse_recipe(kind, stage)
    return kind


def _refuse_recipe(kind: Kind, stage: Stage) -> None:
    """A recipe, or overrides of one, where nothing would read them."""
    if stage.recipe is not None:
        raise ConfigError(f"stage {stage.name}: a stage of kind {stage.kind} has no recipe. Remove recipe:.")
    if stage.overrides:
        names = [item.name for item in fields(kind.options)]
        key, _, value = stage.overrides[0].partition("=")
        instead = key if key in names else names[0] if names else "key"
        raise ConfigError(
            f"stage {stage.name}: {stage.overrides[0]}: a stage of kind {stage.kind} has no recipe that an override "
            f"could change. Its options ({', '.join(names) or 'none'}) are set with "
            f"{stage.name}.options.{instead}={value if key in names else '...'}.{did_you_mean(key, names)}"
        )


def prepare(pipeline: Pipeline, stage: Stage) -> Prepared:
    """Make a stage ready. Raises ConfigError or DataError with the stage's name."""
    kind = kind_of(stage)
    options: Any = parse_block(kind.options, stage.options, f"stage {stage.name}: options")
    return kind.prepare(Place(pipeline, stage), options)


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Refusals inside begin with the stage's name."""
    try:
        yield
    except S2LError as error:
        raise type(error)(f"stage {name}: {error}") from error


def stage_folder(pipeline: Pipeline, name: str) -> Path:
    return pipeline.out / "stages" / name


def output_folder(pipeline: Pipeline, stage: Stage) -> Path:
    """What other stages take: the exported model, or the folder that the command wrote."""
    if kind_of(stage).makes_model:
        return pipeline.out / "models" / stage.output
    return stage_folder(pipeline, stage.name) / "run"


def relative(pipeline: Pipeline, path: str | Path) -> str:
    """A path (or text with paths) without the output folder's, so that moving the folder changes nothing."""
    return re.sub(rf"{re.escape(str(pipeline.out))}(?![^/\"'\s,\])}}])", "<out>", str(path))


def allow_inputs(place: Place, known: Mapping[str, Any]) -> None:
    """Raise ConfigError for an input that the kind does not read."""
    for name in place.stage.inputs:
        if name not in known:
            raise ConfigError(
                f"stage {place.stage.name}: inputs.{name}: a stage of kind {place.stage.kind} reads "
                f"{', '.join(known)}.{did_you_mean(name, known)}"
            )


def _load_kinds() -> None:
    """The registry's own entries, unless something took their place."""
    from s2l_ext.pipeline.explore_kind import Explore
    from s2l_ext.pipeline.other_kinds import Evaluate, Split, Toy
    from s2l_ext.pipeline.train_kind import Train

    ours: dict[str, Kind] = {"train": Train(), "toy": Toy(), "split": Split()}
    for name, kind in (ours | {"explore": Explore(), "evaluate": Evaluate()}).items():
        KINDS.setdefault(name, kind)
