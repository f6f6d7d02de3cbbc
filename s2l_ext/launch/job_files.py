"""What goes with a job: its runtime environment, and the files that a recipe names by a relative path.

What does not need the cluster is checked here: the recipe composes, its settings agree, what it names by a relative
path goes along, and no secret does. Models, data and accelerators are checked where the job runs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import yaml
from omegaconf import DictConfig, OmegaConf

from s2l_ext.errors import ConfigError
from s2l_ext.launch.cluster import refuse_own_sizes
from s2l_ext.launch.compose import compose_config, require_values
from s2l_ext.launch.verl_names import FILES as VERLS_FILES
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.rules import check_against_verl
from s2l_ext.utils.secrets import refuse_secrets, secret_setting, secret_variable

OWN_VARIABLES = "S2L_"
MODELS = (
    "actor_rollout_ref.model.path",
    "actor_rollout_ref.model.tokenizer_path",
    "actor_rollout_ref.model.lora_adapter_path",
    "reward.reward_model.model_path",
    "s2l.explorer.model_path",
    "s2l.distill.teacher_path",
)
FILES = (
    "s2l.explorer.store",
    "s2l.curriculum.warm_start",
    "s2l.guidance.teacher_rollouts",
    "reward.custom_reward_function.path",
    *VERLS_FILES,
)
DATA = ("data.train_files", "data.val_files")
_FROM_VARIABLE = re.compile(r"\$\{oc\.env:(\w+),([^}$]+)\}")


# ---- the runtime environment ----------------------------------------------------------------------------------------


def runtime_env(
    path: Path | None, working_dir: Path | None, names: Sequence[str], shell: Mapping[str, str]
) -> dict[str, Any]:
    """Ray's runtime environment from its file, a working folder and named variables; nothing else of the shell. Raises
    ConfigError: an unreadable file, a folder that does not exist, a variable that is not set, given twice or secret."""
    environment = _read(path) if path else {}
    if working_dir is not None:
        if "working_dir" in environment:
            raise ConfigError(f"--working-dir {working_dir}: {path} has a working_dir too. Leave one of them out.")
        if not working_dir.is_dir():
            raise ConfigError(f"--working-dir {working_dir}: no such folder.")
        environment["working_dir"] = str(working_dir)
    variables = environment.get("env_vars") or {}
    for name in names:
        if name in variables:
            raise ConfigError(f"--env {name}: {path} sets it too, or it is given twice. Leave one of them out.")
        variables[name] = _value(name, shell)
    return {**environment, "env_vars": variables} if variables else environment


def _value(name: str, shell: Mapping[str, str]) -> str:
    named, _, given = name.partition("=")
    _refuse_secrets({"env_vars": {named: given or shell.get(named) or "not set"}}, "--env ")
    if "=" in name:
        raise ConfigError(
            f"--env {named}=...: give the name only. The value comes from the shell, so that no command line shows it. "
            "Put another value for the job into the file of --runtime-env."
        )
    if name not in shell:
        raise ConfigError(f"--env {name}: not set in this shell. Run `export {name}=...` first.")
    return shell[name]


def _refuse_secrets(environment: Mapping[str, Any], where: str) -> None:
    """Ray shows a runtime environment on its dashboard and writes it to its logs."""
    variables = environment.get("env_vars") or {}
    named = next((name for name, value in variables.items() if secret_variable(str(name), str(value or ""))), None)
    other = secret_setting({key: value for key, value in environment.items() if key != "env_vars"})
    if named or other:
        raise ConfigError(
            f"{where}{named or other} holds what looks like a secret. Ray shows a job's runtime environment on its "
            "dashboard and in its logs. Take it out and set it where the nodes' Ray starts, because jobs inherit that "
            f"environment: `export {named or 'NAME'}=...` before `ray start` or sbatch, a secretKeyRef with KubeRay "
            "(examples/ray_submit)."
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"--runtime-env {path}: cannot be read ({' '.join(str(error).split())}).") from error
    if not isinstance(content, dict) or not isinstance(content.get("env_vars") or {}, dict):
        raise ConfigError(
            f"--runtime-env {path}: must be a mapping such as `working_dir: .`, and env_vars in it a mapping of names."
        )
    for name, value in (content.get("env_vars") or {}).items():
        if not isinstance(value, str):
            raise ConfigError(
                f"--runtime-env {path}: env_vars.{name} is not text, which Ray requires. Put it in quotes."
            )
    _refuse_secrets(content, f"--runtime-env {path}: ")
    return content


# ---- a training run -------------------------------------------------------------------------------------------------


def check_recipe(
    name: str, overrides: Sequence[str], folders: Sequence[Path], environment: Mapping[str, Any]
) -> list[str]:
    """Warnings about a training run that is to be sent with a runtime environment. Raises ConfigError: a recipe that
    does not compose or contradicts itself, a secret in it, or a file that stays here."""
    working_dir, sent = environment.get("working_dir"), environment.get("env_vars") or {}
    # of this package's variables the job has those that are sent: the shell's stay here
    kept = {name: value for name, value in os.environ.items() if not name.startswith(OWN_VARIABLES)}
    with mock.patch.dict(os.environ, kept | {name: str(value) for name, value in sent.items()}, clear=True):
        cfg = compose_config(name, overrides, folders)
        require_values(cfg)
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        refuse_secrets(plain)
        for key, path in [("--config-name", name), *(("--config-dir", str(folder)) for folder in folders)]:
            _require_sent(key, Path(path), working_dir)
        refuse_own_sizes(cfg, "a job joins the cluster that it is sent to")
        warnings = check_against_verl(parse_s2l(cfg.s2l), cfg)
        return [*warnings, *_left_behind(cfg, working_dir), *_relative_folder(cfg.trainer.default_local_dir)]


def _is_sent(path: str | Path, working_dir: str | None) -> bool:
    """Whether a path relative to here is in the local folder that travels: the job starts in its copy."""
    return working_dir is not None and (Path(working_dir) / path).exists()


def _require_sent(key: str, path: Path, working_dir: str | None) -> None:
    """A file or folder named relative to here must be at the same place in what the job gets."""
    is_file_here = path.exists() and (path.is_dir() if key == "--config-dir" else path.suffix in (".yaml", ".yml"))
    if path.is_absolute() or not is_file_here or (working_dir and "://" in working_dir):
        return
    if not _is_sent(path, working_dir):
        raise ConfigError(
            f"{key} {path} is on this machine only. Send it along: --working-dir . (a folder in which {path} is at "
            "that place), or give an absolute path on storage that the cluster's nodes share."
        )


def _relative_folder(folder: str) -> list[str]:
    if Path(folder).is_absolute() or "://" in folder:
        return []
    return [
        f"trainer.default_local_dir={folder} is relative: on the cluster it is below the job's own folder, which goes "
        "with the job. Give a path on storage that all nodes share, so that a run can be resumed."
    ]


def _left_behind(cfg: DictConfig, working_dir: str | None) -> list[str]:
    """Warnings about files and models whose relative paths the job will look up in its own folder. Raises ConfigError:
    one of them is not in the local folder that travels."""
    travels = working_dir is not None and "://" not in working_dir
    absent: dict[str, list[str]] = {}
    for key, path in _relative(cfg):
        if not _is_sent(path, working_dir):
            absent.setdefault(_fix(cfg, path), []).append(f"{key}={path}")
    if travels:
        why = f"not in the working folder ({working_dir}), in a copy of which the job starts."
    else:
        why = "relative, so looked up in the folder in which the job starts on the cluster."
    told = [f"{', '.join(named)}: {why} {fix}" for fix, named in absent.items()]
    if told and travels:
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
