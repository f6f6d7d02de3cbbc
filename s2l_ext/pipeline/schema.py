"""A pipeline file: OmegaConf YAML to frozen dataclasses. Every refusal names the file's key, the reason and the fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import is_pipeline, search_folders

STAGE_MARK = "stage:"
"""Begins a value of ``models`` or ``splits`` that a stage makes, such as ``stage:toy/models/large``."""


@dataclass(frozen=True)
class Input:
    """What a stage is given: references to models, splits or stages, and the override keys that they are set as.

    ``keys`` None means those of the stage's kind.
    """

    refs: tuple[str, ...]
    keys: tuple[str, ...] | None = None
    is_list: bool = False


@dataclass(frozen=True)
class StageBlock:
    """A stage as written. ``output`` is the folder below ``models/`` (default: the stage's name)."""

    name: str
    kind: str
    recipe: str | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    overrides: list[Any] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    labels: bool | None = None
    output: str | None = None


@dataclass(frozen=True)
class Stage:
    """A stage as understood. ``labels`` None: decided by the recipe's loss."""

    name: str
    kind: str
    recipe: str | None
    inputs: dict[str, Input]
    overrides: tuple[str, ...]
    options: dict[str, Any]
    labels: bool | None
    output: str


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


@dataclass(frozen=True)
class Pipeline:
    """A pipeline as understood.

    Attributes:
        out: absolute output folder.
        models: name -> Hugging Face folder, hub id, or ``stage:STAGE/part``.
        splits: name -> data files, or ``stage:STAGE/part``.
        overrides: Hydra overrides of every train stage, before the stage's own.
    """

    name: str
    out: Path
    stages: tuple[Stage, ...]
    models: dict[str, str]
    splits: dict[str, tuple[str, ...]]
    overrides: tuple[str, ...]
    allow_label_overlap: bool

    def stage(self, name: str) -> Stage:
        return next(stage for stage in self.stages if stage.name == name)

    @property
    def stage_names(self) -> list[str]:
        return [stage.name for stage in self.stages]


def read_pipeline(path: Path, out: Path | None = None, overrides: Sequence[str] = ()) -> Pipeline:
    """Read a file, its base and the command line's overrides.

    Args:
        out: takes the place of ``output_dir``.
        overrides: ``key=value``. A key of the file sets it, ``STAGE.options.key`` an option of that stage,
            ``STAGE.key`` is a Hydra override of that stage, any other key is one of every train stage.

    Raises:
        ConfigError: no such file, not YAML, unknown key, wrong type, no stages, or a duplicate or unusable name.
    """
    path = find_pipeline(path)
    cfg = _load(path, ())
    plain = _resolved(_apply(cfg, overrides), path)
    block = parse_block(PipelineBlock, plain, path.name)
    stages = tuple(_stage(stage, f"{path.name}.stages[{number}]") for number, stage in enumerate(block.stages))
    if not stages:
        raise ConfigError(f"{path}: stages is empty. List at least one stage with name and kind.")
    return Pipeline(
        name=block.name,
        out=Path(out or block.output_dir or f"outputs/{block.name}").expanduser().resolve(),
        stages=stages,
        models={name: _text(value, f"{path.name}.models.{name}") for name, value in block.models.items()},
        splits={name: _texts(value, f"{path.name}.splits.{name}") for name, value in block.splits.items()},
        overrides=_texts(block.overrides, f"{path.name}.overrides"),
        allow_label_overlap=block.allow_label_overlap,
    )


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
            raise ConfigError(f"{path}: leave_out and change speak of the stages of a base. Set base: FILE.yaml.")
        return cfg
    if "stages" in cfg:
        raise ConfigError(f"{path}: stages and base exclude each other. Use leave_out and change with a base.")
    merged = OmegaConf.merge(_load(path.parent / str(base), (*seen, path.resolve())), cfg)
    assert isinstance(merged, DictConfig)
    return _select_stages(merged, path, list(leave_out or []), dict(change or {}))


def find_pipeline(name: Path) -> Path:
    """A file, or a pipeline of the recipe folders by name (``sparse_to_dense/toy``).

    Raises:
        ConfigError: neither; names the nearest.
    """
    if name.is_file():
        return name
    folders = search_folders()
    for folder in folders:
        if (found := folder / f"{str(name).removesuffix('.yaml')}.yaml").is_file():
            return found
    known = sorted(
        {str(p.relative_to(f).with_suffix("")) for f in folders for p in f.glob("*/*.yaml") if is_pipeline(p)}
    )
    raise ConfigError(f"{name}: no such pipeline file.{did_you_mean(name, known)} Pipelines: {', '.join(known)}.")


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


def _resolved(cfg: DictConfig, path: Path) -> dict[str, Any]:
    try:
        plain = OmegaConf.to_container(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from error
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


# ---- command line -------------------------------------------------------------------------------------------------


def _apply(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    own = {item.name for item in fields(PipelineBlock)} - {"stages"}
    stages = {stage.get("name"): stage for stage in cfg.get("stages") or [] if isinstance(stage, DictConfig)}
    for override in overrides:
        key, separator, _ = override.partition("=")
        head, _, rest = key.partition(".")
        if not separator and not key.startswith("~"):
            raise ConfigError(f"{override}: not an override. Write key=value.")
        inner = override.split(".", 1)[-1]
        with _refusing(override):
            if head in own:
                cfg.merge_with_dotlist([override])
            elif head in stages and rest.startswith("options."):
                stages[head].merge_with_dotlist([inner])
            elif head in stages and rest:
                _append(stages[head], inner)
            else:
                _append(cfg, override)
    return cfg


@contextlib.contextmanager
def _refusing(override: str) -> Iterator[None]:
    try:
        yield
    except (OmegaConfBaseException, yaml.YAMLError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(f"{override}: cannot be set ({' '.join(str(error).split())[:200]}).") from error


def _append(block: DictConfig, override: str) -> None:
    block.overrides = [*(block.get("overrides") or []), override]


# ---- values -------------------------------------------------------------------------------------------------------


def _stage(value: Any, key: str) -> Stage:
    block = parse_block(StageBlock, value, key)
    for name, what in ((block.name, "name"), (block.output or block.name, "output")):
        if "/" in name or name.startswith(".") or name != name.strip():
            raise ConfigError(f"{key}.{what}={name!r} becomes a folder: it may have no '/' and not begin with a dot.")
    return Stage(
        name=block.name,
        kind=block.kind,
        recipe=block.recipe,
        inputs={name: _input(item, f"{key}.inputs.{name}") for name, item in block.inputs.items() if item is not None},
        overrides=_texts(block.overrides, f"{key}.overrides"),
        options=block.options,
        labels=block.labels,
        output=block.output or block.name,
    )


def _input(value: Any, key: str) -> Input:
    """``NAME``, ``[NAME, ...]`` or ``{from: NAME, keys: [override keys]}``; null takes an input of a base away."""
    if not isinstance(value, Mapping):
        return Input(_texts(value, key), is_list=isinstance(value, list))
    unknown = sorted(set(value) - {"from", "keys"})
    if unknown or "from" not in value:
        wrong = f"unknown key {unknown[0]!r}" if unknown else "`from` is missing"
        raise ConfigError(f"{key}: {wrong}. Write {{from: NAME, keys: [override.key, ...]}}.")
    given = _input(value["from"], f"{key}.from")
    return replace(given, keys=_texts(value["keys"], f"{key}.keys") if "keys" in value else None)


def _text(value: Any, key: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"{key}={value!r} must be text.")
    return value


def _texts(value: Any, key: str) -> tuple[str, ...]:
    values = value if isinstance(value, list) else [value]
    return tuple(_text(item, f"{key}[{number}]") for number, item in enumerate(values))
