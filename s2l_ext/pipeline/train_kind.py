"""Stages of kind ``train``: ``s2l train`` with the inputs as overrides."""

from __future__ import annotations

import contextlib
import json
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.verl_settings import total_steps
from s2l_ext.data.tokenizers import trust_of
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.distill.inputs import TEACHER_KEY
from s2l_ext.methods.explorer.inputs import EXPLORER_KEY
from s2l_ext.methods.registry import S2LConfig, accuracy_settings, parse_s2l
from s2l_ext.pipeline.accounting import training_result
from s2l_ext.pipeline.kinds import Command, Place, Prepared, SameTokens, in_stage, relative
from s2l_ext.pipeline.schema import Input
from s2l_ext.training.controller_state import TRACKER_FILE
from s2l_ext.training.inputs import LEARNER_KEY, steps_of_run
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.rules import check_against_verl
from s2l_ext.training.run_log import FILE_NAME as METRICS_FILE
from s2l_ext.training.run_log import TRAINING_MARK
from s2l_ext.utils import json_text
from s2l_ext.utils.files import write_atomically

CHECKPOINTS = 4
"""Checkpoints that a run makes whose recipe makes none: the last is the stage's output, the others shorten a resume."""

KEPT_CHECKPOINTS = 2
"""Of these so many are kept, unless the recipe says: a kill while one is written leaves the one before."""

UNCOUNTED_SAVE_FREQ = 25
"""Steps between checkpoints where nothing says how many steps there will be."""

INPUT_KEYS: dict[str, tuple[str, ...]] = {
    "model": ("actor_rollout_ref.model.path",),
    "teacher": ("s2l.distill.teacher_path", "s2l.explorer.model_path"),
    "explorer": ("s2l.explorer.model_path",),
    "store": ("s2l.explorer.store",),
    "data": ("data.train_files",),
    "val": ("data.val_files",),
}
"""Override keys of each input. ``teacher`` is set only in those of the two blocks that the recipe has, and leaves the
explorer's to ``explorer`` where that is given, or to the ``store`` that a recipe without servers reads."""

OWNED = ("trainer.default_local_dir", "trainer.resume_mode", "trainer.resume_from_path")
SAVE = "actor_rollout_ref.actor.checkpoint.save_contents"
LOAD = "actor_rollout_ref.actor.checkpoint.load_contents"
_PLAIN_VALUE = re.compile(r"[\w./:@%+-]+")


@dataclass(frozen=True)
class NoOptions:
    """A train stage is described by its recipe."""


class Train:
    """GRPO, warm-up and distillation alike: the recipe says which."""

    options: type = NoOptions
    needs_recipe = True
    makes_model = True
    reproducible = True

    def prepare(self, place: Place, options: Any) -> Prepared:
        del options
        given = [*place.pipeline.overrides, *place.stage.overrides]
        _refuse_owned(place, given)
        cfg = _compose(place, given)
        settings = _input_settings(place, cfg)
        _apply(place, cfg, settings)
        own = _own_settings(place, cfg)
        _apply(place, cfg, own)
        words = [f"{_plus(key)}{key}={_hydra(value)}" for key, value in (settings | own).items()]
        command = (
            sys.executable,
            "-m",
            "s2l_ext.launch.train",
            "--config-name",
            str(place.stage.recipe),
            *given,
            *words,
        )
        return _prepared(place, cfg, Command(command))

    def finished(self, place: Place, prepared: Prepared) -> bool:
        """The last checkpoint is complete and its step has its line of metrics."""
        step = last_step(place.run)
        if prepared.steps is None or step != prepared.steps or not (place.run / METRICS_FILE).is_file():
            return False
        lines = (place.run / METRICS_FILE).read_text().splitlines()
        return any(f'"step": {step},' in line and TRAINING_MARK in line and _is_json(line) for line in lines)

    def exported(self, place: Place) -> Path:
        """verl's FSDP checkpoint manager writes weights, configuration and tokenizer into this folder."""
        step = last_step(place.run)
        if step is None:
            raise DataError(
                f"stage {place.stage.name}: {place.run} holds no checkpoint, so there is no model to hand on. The log "
                f"says why: {place.folder / 'log.txt'}"
            )
        folder = place.run / f"global_step_{step}" / "actor" / "huggingface"
        for _, model in place.inputs().get("model", []):
            keep_dtype(folder, Path(model))
        return folder

    def result(self, place: Place, prepared: Prepared) -> dict[str, Any]:
        return training_result(place.run, prepared.accounting)


def last_step(run: Path) -> int | None:
    """Step of verl's last complete checkpoint; None without one."""
    try:
        return int((run / TRACKER_FILE).read_text())
    except (OSError, ValueError):
        return None


def keep_dtype(folder: Path, model: Path) -> None:
    """Let the exported configuration name the dtype of the model that the stage started from.

    verl 0.9.1 writes bfloat16, whatever the weights are; a float32 model would be loaded rounded.
    """
    ours, given = (path / "config.json" for path in (folder, model))
    if not (ours.is_file() and given.is_file()):
        return
    config, wanted = json_text.loads(ours.read_text()), json_text.loads(given.read_text())
    dtype = wanted.get("dtype", wanted.get("torch_dtype"))
    if dtype is not None and config.get("dtype") != dtype:
        write_atomically(ours, json.dumps(config | {"dtype": dtype}, indent=2, sort_keys=True) + "\n")


def _is_json(line: str) -> bool:
    try:
        return isinstance(json_text.loads(line), dict)
    except ValueError:
        return False


def _refuse_owned(place: Place, overrides: Sequence[str]) -> None:
    for override in overrides:
        if override.lstrip("+~").partition("=")[0] in OWNED:
            raise ConfigError(
                f"stage {place.stage.name}: {override}: the pipeline sets {', '.join(OWNED)}, so that stages resume "
                "and do not write over each other. Remove the override."
            )


def _compose(place: Place, overrides: Sequence[str]) -> DictConfig:
    try:
        return compose_config(str(place.stage.recipe), overrides)
    except ConfigError as error:
        raise ConfigError(f"stage {place.stage.name}: {error}") from error


def _input_settings(place: Place, cfg: DictConfig) -> dict[str, Any]:
    """Override key -> path, or list of paths for an input that was given as a list."""
    settings: dict[str, Any] = {}
    for name, group in place.inputs().items():
        given = place.stage.inputs[name]
        paths = [path for _, path in group]
        for key in _keys(place, name, given, cfg):
            settings[key] = paths if given.is_list or len(paths) > 1 else paths[0]
    return settings


def _keys(place: Place, name: str, given: Input, cfg: DictConfig) -> tuple[str, ...]:
    if given.keys is not None:
        return given.keys
    if name not in INPUT_KEYS:
        raise ConfigError(
            f"stage {place.stage.name}: inputs.{name}: a train stage knows {', '.join(INPUT_KEYS)}. For another input "
            f"say what it sets: {name}: {{from: {given.refs[0]}, keys: [some.override.key]}}."
        )
    stored = OmegaConf.select(cfg, "s2l.explorer.source") == "offline"
    others = INPUT_KEYS["explorer"] if name == "teacher" and ("explorer" in place.stage.inputs or stored) else ()
    keys = tuple(key for key in INPUT_KEYS[name] if key not in others and _has_block(cfg, key))
    if not keys:
        blocks = " nor ".join(key.rpartition(".")[0] for key in INPUT_KEYS[name])
        raise ConfigError(
            f"stage {place.stage.name}: inputs.{name}: recipe {place.stage.recipe} has no {blocks} to give it to. Take "
            "the input away, or use a recipe that has one."
        )
    return keys


def _has_block(cfg: DictConfig, key: str) -> bool:
    return OmegaConf.select(cfg, key.rpartition(".")[0]) is not None


def _own_settings(place: Place, cfg: DictConfig) -> dict[str, Any]:
    save = OmegaConf.to_container(OmegaConf.select(cfg, SAVE), resolve=True)
    load = OmegaConf.to_container(OmegaConf.select(cfg, LOAD), resolve=True)
    assert isinstance(save, list)
    settings: dict[str, Any] = {
        "trainer.default_local_dir": str(place.run),
        "trainer.resume_mode": "auto",
        SAVE: [*save, *(["hf_model"] if "hf_model" not in save else [])],
        LOAD: load,
    }
    if cfg.trainer.save_freq <= 0:
        steps = _steps(place, cfg)
        settings["trainer.save_freq"] = UNCOUNTED_SAVE_FREQ if steps is None else max(1, steps // CHECKPOINTS)
    if cfg.trainer.max_actor_ckpt_to_keep is None:
        settings["trainer.max_actor_ckpt_to_keep"] = KEPT_CHECKPOINTS
    return settings


def _steps(place: Place, cfg: DictConfig) -> int | None:
    """Steps of the run: the recipe's, or fewer if the data ends before them, once the data is there."""
    files = [Path(path).expanduser() for path in _paths(cfg.data.train_files)]
    with in_stage(place.stage.name):
        if not all(file.is_file() for file in files):
            return total_steps(cfg)
        try:
            steps = steps_of_run(cfg)
        except (OSError, pa.ArrowException):
            return total_steps(cfg)  # the check of labels says what is wrong with the file
        return None if steps is None else steps.number


def _apply(place: Place, cfg: DictConfig, settings: Mapping[str, Any]) -> None:
    key = ""
    try:
        for key, value in settings.items():
            with open_dict(cfg) if _plus(key) else contextlib.nullcontext():
                OmegaConf.update(cfg, key, value)
    except (OmegaConfBaseException, TypeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"stage {place.stage.name}: {key} cannot be set in {place.stage.recipe}: {reason}") from error


def _plus(key: str) -> str:
    """The block s2l may get any key; its parser refuses wrong ones."""
    return "++" if key.startswith("s2l.") else ""


def _hydra(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    text = str(value)
    if _PLAIN_VALUE.fullmatch(text):
        return text
    quoted = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{quoted}'"


def _prepared(place: Place, cfg: DictConfig, command: Command) -> Prepared:
    plain = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(plain, dict)
    s2l, warnings = _checked(place, cfg)
    train, val = (_paths(cfg.data.get(key)) for key in ("train_files", "val_files"))
    own = f"{place.pipeline.out}/"
    return Prepared(
        commands=[command],
        settings=json_text.loads(relative(place.pipeline, json.dumps(plain, sort_keys=True, default=str))),
        files=[path for path in (*train, *val) if not path.startswith(own)],
        train_files=train,
        labels=_uses_labels(place, s2l, cfg),
        steps=_steps(place, cfg),
        accounting=_accounting(cfg, s2l),
        warnings=warnings,
        same_tokens=_same_tokens(cfg, s2l),
    )


def _checked(place: Place, cfg: DictConfig) -> tuple[S2LConfig, list[str]]:
    """What `s2l train` would refuse, before any other stage has run."""
    with in_stage(place.stage.name):
        s2l = parse_s2l(cfg.s2l)
        return s2l, check_against_verl(s2l, cfg)


def _same_tokens(cfg: DictConfig, s2l: S2LConfig) -> list[SameTokens]:
    """The stage's model beside every model that it shares token sequences with."""
    model = (LEARNER_KEY, cfg.actor_rollout_ref.model.path)
    others = [(TEACHER_KEY, s2l.distill.teacher_path if s2l.distill else None)]
    others.append((EXPLORER_KEY, s2l.explorer.model_path if s2l.explorer else None))
    return [(model, (key, path), trust_of(cfg).code) for key, path in others if path is not None]


def _paths(value: Any) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else [str(path) for path in value]


def _uses_labels(place: Place, s2l: S2LConfig, cfg: DictConfig) -> bool:
    """A loss toward a teacher reads no labels, unless rows, prompts or hints are chosen by what was right."""
    if place.stage.labels is not None:
        return place.stage.labels
    return s2l.distill is None or bool(accuracy_settings(s2l, cfg))


def _accounting(cfg: DictConfig, s2l: S2LConfig) -> dict[str, Any]:
    return {
        "accelerators": sum(gpus_needed(cfg, s2l).values()),
        "model": cfg.actor_rollout_ref.model.path,
        "explorer": s2l.explorer.model_path if s2l.explorer else None,
        "stored": s2l.explorer is not None and not s2l.explorer.is_live,
        "teacher": s2l.distill.teacher_path if s2l.distill else None,
    }
