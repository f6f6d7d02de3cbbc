"""A pipeline file: YAML to stages in the order in which they run. Every refusal names the key, the reason, the fix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block, to_plain
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import find_file
from s2l_ext.pipeline.commands import Convert, Evaluate, Explore, Split, Toy
from s2l_ext.pipeline.stage import Kind, Pipeline, Source, Stage, StageBlock
from s2l_ext.pipeline.train import Train

STAGE_MARK = "stage:"
"""Begins a value of ``models`` or ``splits`` that a stage makes, such as ``stage:toy/models/large``."""

NAMED = ("models", "splits", "vars")
"""Keys of the file that hold values by name."""

KINDS: dict[str, Kind] = {
    "train": Train(),
    "toy": Toy(),
    "convert": Convert(),
    "split": Split(),
    "explore": Explore(),
    "evaluate": Evaluate(),
}


@dataclass(frozen=True)
class PipelineBlock:
    """The whole file as written. ``vars`` holds values for interpolation; nothing reads it otherwise.

    ``output_dir`` None means ``outputs/<name>``.
    """

    name: str
    stages: list[Any]
    output_dir: str | None = None
    models: dict[str, Any] = field(default_factory=dict)
    splits: dict[str, Any] = field(default_factory=dict)
    overrides: list[Any] = field(default_factory=list)
    allow_label_overlap: bool = False
    vars: dict[str, Any] = field(default_factory=dict)


def read_pipeline(path: Path, out: Path | None = None, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a file, its base and the command line's overrides.

    Args:
        out: takes the place of ``output_dir``.
        overrides: ``key=value``. A key of the file sets it, ``STAGE.options.key`` an option of that stage,
            ``STAGE.key`` is a Hydra override of that stage, any other key is one of every train stage.

    Raises:
        ConfigError: no such file, not YAML, unknown key, wrong type, no stages, a duplicate or unusable name, an input
            that names nothing, stages that wait for each other, or a kind that does not fit.
    """
    path = find_file(path, "pipeline")
    where = path.name
    block = parse_block(PipelineBlock, to_plain(_override(_load(path, ()), overrides), str(path)), where)
    blocks = {f"{where}.stages[{n}]": stage for n, stage in enumerate(block.stages)}
    stages = {key: parse_block(StageBlock, stage, key) for key, stage in blocks.items()}
    if not stages:
        raise ConfigError(f"{path}: stages is empty. List at least one stage with name and kind.")
    models = {name: _text(value, f"{where}.models.{name}") for name, value in block.models.items()}
    splits = {name: _texts(value, f"{where}.splits.{name}") for name, value in block.splits.items()}
    counted = Counter([*(stage.name for stage in stages.values()), *models, *splits])
    if twice := [name for name, count in counted.items() if count > 1]:
        raise ConfigError(f"the name {twice[0]!r} is given twice among stages, models and splits. Rename one of them.")
    folder = Path(out or block.output_dir or f"outputs/{block.name}").expanduser().resolve()
    shared = _texts(block.overrides, f"{where}.overrides")
    bare = {key: _without_inputs(stage, key, folder, shared) for key, stage in stages.items()}
    values = splits | {name: (value,) for name, value in models.items()}
    named = {stage.name: stage for stage in bare.values()}
    ordered = _in_order([replace(stage, given=_inputs(stage, key, values, named)) for key, stage in bare.items()])
    return Pipeline(block.name, folder, tuple(ordered), models, block.allow_label_overlap)


# ---- files and their bases ----------------------------------------------------------------------------------------


def _load(path: Path, seen: tuple[Path, ...]) -> DictConfig:
    """The file, merged over its ``base`` (relative to it), with ``leave_out`` and ``change`` applied to base stages."""
    if path.resolve() in seen:
        chain = " -> ".join(file.name for file in (*seen, path))
        raise ConfigError(f"{path}: base files form a cycle: {chain}. Remove one `base:`.")
    cfg = _read_yaml(path)
    base, leave_out, change = (cfg.pop(key, None) for key in ("base", "leave_out", "change"))
    if base is None:
        if leave_out or change:
            raise ConfigError(f"{path}: leave_out and change refer to the stages of a base. Set base: FILE.yaml.")
        return cfg
    if "stages" in cfg:
        raise ConfigError(f"{path}: stages and base exclude each other. Use leave_out and change with a base.")
    merged = OmegaConf.merge(_load(path.parent / str(base), (*seen, path.resolve())), cfg)
    assert isinstance(merged, DictConfig)
    left_out = _texts(to_plain(leave_out, str(path)) or [], f"{path}: leave_out")
    change = to_plain(change, str(path))
    if not isinstance(change, Mapping) or not all(isinstance(part, Mapping) for part in change.values()):
        raise ConfigError(f"{path}: change={change!r}: it has a mapping of settings for each stage that it names.")
    return _select_stages(merged, path, list(left_out), dict(change))


def _read_yaml(path: Path) -> DictConfig:
    if not path.is_file():
        raise ConfigError(f"{path}: no such pipeline file. Correct `base:`.")
    try:
        cfg = OmegaConf.load(path)
    except Exception as error:  # yaml has no common base that OmegaConf re-raises
        raise ConfigError(f"{path}: not a YAML file ({' '.join(str(error).split())[:200]}).") from error
    if not isinstance(cfg, DictConfig):
        raise ConfigError(f"{path}: a pipeline file is a mapping with name, output_dir and stages.")
    if "stages" not in cfg and "base" not in cfg:
        raise ConfigError(
            f"{path} has no `stages:`, so it is no pipeline. A training recipe runs with s2l train --config-name."
        )
    return cfg


def _select_stages(cfg: DictConfig, path: Path, leave_out: list[str], change: dict[str, Any]) -> DictConfig:
    names = [stage.get("name") for stage in cfg.stages]
    for key, name in [("leave_out", name) for name in leave_out] + [("change", name) for name in change]:
        if name not in names:
            raise ConfigError(
                f"{path}: {key}: {name}: the base has no such stage.{did_you_mean(name, names)} "
                f"Stages: {', '.join(names)}."
            )
    kept = [stage for stage in cfg.stages if stage.name not in leave_out]
    cfg.stages = [OmegaConf.merge(stage, change.get(stage.name, {})) for stage in kept]
    return cfg


# ---- command line -------------------------------------------------------------------------------------------------


def _override(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    own = {item.name for item in fields(PipelineBlock)} - {"stages"}
    stages = {stage.get("name"): stage for stage in cfg.get("stages") or [] if isinstance(stage, DictConfig)}
    for override in overrides:
        key, separator, _ = override.partition("=")
        head, _, rest = key.partition(".")
        if not separator and not key.startswith("~"):
            raise ConfigError(f"{override}: not an override. Write key=value.")
        inner = override.split(".", 1)[-1]
        if rest and head in NAMED and (name := rest.partition(".")[0]) not in (known := list(cfg.get(head) or ())):
            raise ConfigError(
                f"{override}: {head} has no {name!r}, so nothing reads it.{did_you_mean(name, known)} It has: "
                f"{', '.join(map(str, known)) or 'nothing'}."
            )
        try:
            if head in own:
                cfg.merge_with_dotlist([override])
            elif head in stages and rest.startswith("options."):
                stages[head].merge_with_dotlist([inner])
            else:
                block, words = (stages[head], inner) if head in stages and rest else (cfg, override)
                block.overrides = [*(block.get("overrides") or []), words]
        except (OmegaConfBaseException, yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
            raise ConfigError(f"{override}: cannot be set ({' '.join(str(error).split())[:200]}).") from error
    return cfg


# ---- stages -------------------------------------------------------------------------------------------------------


def _without_inputs(block: StageBlock, key: str, out: Path, shared: tuple[str, ...]) -> Stage:
    if "/" in block.name or block.name.startswith(".") or block.name != block.name.strip():
        raise ConfigError(f"{key}.name={block.name!r} becomes a folder: it may have no '/' and not begin with a dot.")
    if block.kind not in KINDS:
        raise ConfigError(
            f"stage {block.name}: kind={block.kind!r} does not exist.{did_you_mean(block.kind, KINDS)} "
            f"Kinds: {', '.join(KINDS)}."
        )
    block = replace(block, overrides=list(_texts(block.overrides, f"{key}.overrides")))
    stage = Stage(**vars(block), does=KINDS[block.kind], out=out, shared=shared, given={})
    _check_recipe(stage)
    return stage


def _check_recipe(stage: Stage) -> None:
    """A recipe where the kind needs one; neither recipe nor overrides where nothing would read them."""
    if stage.does.needs_recipe:
        if stage.recipe is None:
            raise ConfigError(
                f"stage {stage.name}: recipe is missing. Name a training recipe, such as recipe: grpo/toy."
            )
    elif stage.recipe is not None:
        raise ConfigError(f"stage {stage.name}: a stage of kind {stage.kind} has no recipe. Remove recipe:.")
    elif stage.overrides:
        names = [item.name for item in fields(stage.does.options)]
        key, _, value = stage.overrides[0].partition("=")
        instead = f"{key}={value}" if key in names else f"{names[0] if names else 'key'}=..."
        raise ConfigError(
            f"stage {stage.name}: {stage.overrides[0]}: a stage of kind {stage.kind} has no recipe that an override "
            f"could change. Its options ({', '.join(names) or 'none'}) are set with "
            f"{stage.name}.options.{instead}.{did_you_mean(key, names)}"
        )


def _inputs(
    stage: Stage, key: str, values: Mapping[str, Sequence[str]], stages: Mapping[str, Stage]
) -> dict[str, tuple[Source, ...]]:
    """What each input names, ``NAME`` or ``[NAME, ...]``; null takes an input of a base away."""
    found = {}
    for name, value in stage.inputs.items():
        if value is not None:
            refs, where = _texts(value, f"{key}.inputs.{name}"), f"stage {stage.name}: inputs.{name}"
            found[name] = tuple(source for ref in refs for source in _sources(ref, where, values, stages))
    return found


def _sources(
    ref: str, where: str, values: Mapping[str, Sequence[str]], stages: Mapping[str, Stage]
) -> Iterator[Source]:
    """``values``: those of models and splits."""
    for value in values.get(ref, [f"{STAGE_MARK}{ref}"]):
        head, _, part = value.removeprefix(STAGE_MARK).partition("/")
        if not value.startswith(STAGE_MARK):
            yield Source(ref, value)
            continue
        if ref.startswith(("/", ".", "~")):
            raise ConfigError(
                f"{where}: {ref!r} is a path. Give it a name under models or splits, and write the name here."
            )
        if head not in stages:
            known = [*values, *stages]
            raise ConfigError(
                f"{where}: {ref!r}: no model, split or stage is called {head!r}.{did_you_mean(head, known)} "
                f"Known: {', '.join(known)}."
            )
        if ".." in Path(part).parts:
            raise ConfigError(f"{where}: {ref!r} leaves the stage's folder. Name something inside it.")
        yield Source(ref, str(stages[head].result_folder / part), head)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}={value!r} must be text.")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(item, f"{key}[{number}]") for number, item in enumerate(values))


def _in_order(stages: list[Stage]) -> list[Stage]:
    """Stages so that each comes after those that it takes from; else the order of the file."""
    try:
        TopologicalSorter({stage.name: stage.upstream for stage in stages}).prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        raise ConfigError(f"stages wait for each other: {cycle}. Take one of these inputs away.") from error
    order: dict[str, Stage] = {}
    while len(order) < len(stages):
        ready = next(s for s in stages if s.name not in order and order.keys() >= set(s.upstream))
        order[ready.name] = ready
    return list(order.values())
