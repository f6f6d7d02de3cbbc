"""Who gives what to whom: references of inputs, the order of the stages, cycles."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError
from s2l_ext.pipeline.schema import STAGE_MARK, Pipeline, Stage


@dataclass(frozen=True)
class Source:
    """Where an input comes from: a path of this machine or hub id, or a stage's output (``part`` below it)."""

    ref: str
    path: str | None = None
    stage: str | None = None
    part: str = ""


def sources(pipeline: Pipeline, stage: Stage) -> dict[str, list[Source]]:
    """Sources of every input of a stage, in order.

    Raises:
        ConfigError: a reference that names no model, split or stage.
    """
    return {
        name: [source for ref in given.refs for source in _sources(pipeline, stage, name, ref)]
        for name, given in stage.inputs.items()
    }


def _sources(pipeline: Pipeline, stage: Stage, name: str, ref: str) -> list[Source]:
    if ref in pipeline.models:
        values: tuple[str, ...] = (pipeline.models[ref],)
    elif ref in pipeline.splits:
        values = pipeline.splits[ref]
    else:
        values = (f"{STAGE_MARK}{ref}",)
    return [_source(pipeline, f"stage {stage.name}: inputs.{name}", ref, value) for value in values]


def _source(pipeline: Pipeline, where: str, ref: str, value: str) -> Source:
    if not value.startswith(STAGE_MARK):
        return Source(ref, path=value)
    if ref.startswith(("/", ".", "~")):
        raise ConfigError(
            f"{where}: {ref!r} is a path. Give it a name under models or splits, and write the name here."
        )
    head, _, part = value.removeprefix(STAGE_MARK).partition("/")
    if head not in pipeline.stage_names:
        known = [*pipeline.models, *pipeline.splits, *pipeline.stage_names]
        raise ConfigError(
            f"{where}: {ref!r}: no model, split or stage is called {head!r}.{did_you_mean(head, known)} "
            f"Known: {', '.join(known)}."
        )
    if ".." in Path(part).parts:
        raise ConfigError(f"{where}: {ref!r} leaves the stage's folder. Name something inside it.")
    return Source(ref, stage=head, part=part)


def upstream(pipeline: Pipeline, stage: Stage) -> list[str]:
    """Names of the stages that a stage takes something from, each once."""
    found = [source.stage for group in sources(pipeline, stage).values() for source in group if source.stage]
    return list(dict.fromkeys(found))


def downstream(pipeline: Pipeline, name: str) -> list[str]:
    """A stage and every stage that takes something from it, directly or not, in the order of the stages."""
    reached = {name}
    for stage in ordered(pipeline):
        if reached.intersection(upstream(pipeline, stage)):
            reached.add(stage.name)
    return [stage.name for stage in ordered(pipeline) if stage.name in reached]


def ordered(pipeline: Pipeline) -> list[Stage]:
    """Stages so that each comes after those it needs; else the order of the file.

    Raises:
        ConfigError: a reference to nothing, or stages that wait for each other.
    """
    needs = {stage.name: upstream(pipeline, stage) for stage in pipeline.stages}
    order: list[Stage] = []
    done: set[str] = set()
    while len(order) < len(pipeline.stages):
        ready = next((s for s in pipeline.stages if s.name not in done and done.issuperset(needs[s.name])), None)
        if ready is None:
            cycle = " -> ".join(_cycle(needs, [name for name in needs if name not in done]))
            raise ConfigError(f"stages wait for each other: {cycle}. Take one of these inputs away.")
        order.append(ready)
        done.add(ready.name)
    return order


def _cycle(needs: dict[str, list[str]], waiting: list[str]) -> list[str]:
    """One cycle among stages that all wait for another waiting stage, its first name again at the end."""
    path = [waiting[0]]
    while path[-1] not in path[:-1]:
        path.append(next(name for name in needs[path[-1]] if name in waiting))
    return path[path.index(path[-1]) :]


def check_names(pipeline: Pipeline) -> None:
    """Raise ConfigError for a name that two things have, or an output that two stages write."""
    names = [*pipeline.stage_names, *pipeline.models, *pipeline.splits]
    for name in _repeated(names):
        raise ConfigError(f"the name {name!r} is given twice among stages, models and splits. Rename one of them.")
    for output in _repeated(stage.output for stage in pipeline.stages):
        writers = [stage.name for stage in pipeline.stages if stage.output == output]
        raise ConfigError(
            f"stages {' and '.join(writers)} would both write models/{output}. Give one of them another `output:`."
        )


def _repeated(names: Iterable[str]) -> list[str]:
    seen: set[str] = set()
    return [name for name in names if name in seen or seen.add(name)]  # type: ignore[func-returns-value]


def require_stage(pipeline: Pipeline, name: str, option: str) -> None:
    """Raise ConfigError unless the pipeline has the stage that ``--from`` or ``--only`` names."""
    if name not in pipeline.stage_names:
        raise ConfigError(
            f"{option} {name}: no such stage.{did_you_mean(name, pipeline.stage_names)} "
            f"Stages: {', '.join(pipeline.stage_names)}."
        )
