"""Files that a recipe names by a relative path: a job looks for them in its own folder on the cluster."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.errors import ConfigError

OWN_VARIABLES = "S2L_"
MODELS = ("actor_rollout_ref.model.path", "s2l.explorer.model_path", "s2l.distill.teacher_path")
FILES = (
    "s2l.explorer.store",
    "s2l.curriculum.warm_start",
    "s2l.guidance.teacher_rollouts",
    "data.custom_cls.path",
    "reward.custom_reward_function.path",
)
DATA = ("data.train_files", "data.val_files")
_FROM_VARIABLE = re.compile(r"\$\{oc\.env:(\w+),([^}$]+)\}")


@contextmanager
def variables_of_the_job(sent: Mapping[str, str]) -> Iterator[None]:
    """Inside this block the environment has what is sent, and of this package's variables nothing else: those of the
    shell stay here. What the cluster's own environment sets cannot be known."""
    before = dict(os.environ)
    for name in [name for name in before if name.startswith(OWN_VARIABLES)]:
        del os.environ[name]
    os.environ.update({name: str(value) for name, value in sent.items()})
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def left_behind(cfg: DictConfig, working_dir: str | None) -> list[str]:
    """Warnings about files and models whose relative paths the job will look up in its own folder.

    Args:
        working_dir: of the runtime environment; a local folder travels, and the job starts in its copy.

    Raises:
        ConfigError: one of them is not in the local folder that travels.
    """
    is_sent = working_dir is not None and "://" not in working_dir
    absent: dict[str, list[str]] = {}
    for key, path in _relative(cfg):
        if not (is_sent and (Path(str(working_dir)) / path).exists()):
            absent.setdefault(_fix(cfg, path), []).append(f"{key}={path}")
    if is_sent:
        why = f"not in the working folder ({working_dir}), in a copy of which the job starts."
    else:
        why = "relative, so looked up in the folder in which the job starts on the cluster."
    told = [f"{', '.join(named)}: {why} {fix}" for fix, named in absent.items()]
    if told and is_sent:
        raise ConfigError(" ".join(told))
    return told


def _relative(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """Keys and relative paths of local files and models that the run will read."""
    keys = [*([] if OmegaConf.select(cfg, "data.custom_cls.path") else DATA), *FILES, *MODELS]
    for key in keys:
        value = OmegaConf.select(cfg, key)
        for path in [value] if isinstance(value, str) else value or []:
            is_hub_id = key in MODELS and path.count("/") < 2 and not path.startswith(".")
            if "://" not in path and not path.startswith(("/", "~")) and not is_hub_id:
                yield key, path


def _fix(cfg: DictConfig, path: str) -> str:
    """What to set: the variable from whose default the path comes, if it does."""
    found: list[Any] = _FROM_VARIABLE.findall(OmegaConf.to_yaml(cfg))
    for variable, default in found:
        if Path(path).is_relative_to(default):
            return (
                f"Give a path that every node sees: {variable}=/shared/... in env_vars of the file of --runtime-env, "
                f"or `export {variable}=/shared/...` and --env {variable}."
            )
    return "Give an absolute path on storage that the cluster's nodes share, or send the file along in --working-dir."
