"""From a recipe's name and overrides to one configuration: Hydra's compose on top of verl's ``ppo_trainer``.

verl is found without importing it, because importing verl fixes the platform, which the configuration chooses.
"""

from __future__ import annotations

import importlib.util
import re
import threading
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.nearest import did_you_mean
from s2l_ext.errors import ConfigError

PACKAGED_RECIPES = Path(__file__).parents[1] / "recipes"
SHARED_FOLDER = "base"
"""Holds overlays that recipes list in their defaults; not recipes themselves."""

_HYDRA = threading.Lock()
"""Hydra keeps one search path for the whole process: a study composes in several threads."""

_PIPELINE_KEY = re.compile(r"^(stages|base)\s*:", re.MULTILINE)
_STUDY_KEY = re.compile(r"^arms\s*:", re.MULTILINE)
_S2L_OVERRIDE = re.compile(r"^\+{0,2}(?=s2l[.=])")


def compose_config(config_name: str, overrides: Sequence[str], config_dirs: Iterable[Path] = ()) -> DictConfig:
    """Compose a recipe: its name (``s2l_po/toy``), a path to a YAML file, or verl's own ``ppo_trainer``.
    ``config_dirs`` are searched before ``./recipes`` and this package's. Raises ConfigError: no such recipe, or Hydra
    refuses it.

    ``overrides`` are in Hydra's grammar, but keys under ``s2l`` need no ``+``: unknown ones are refused later, with the
    nearest valid key.
    """
    folders = [*search_folders(config_dirs), verl_config_folder()]
    home, name = _locate(config_name, folders)
    path = home / f"{name}.yaml"
    if path.is_file():
        _refuse_other(path, config_name, "--config-name ")
    search_path = ",".join(f"'file://{folder}'" for folder in folders if folder != home)
    free = [_S2L_OVERRIDE.sub("++", override) for override in overrides]
    try:
        with _HYDRA, initialize_config_dir(config_dir=str(home), version_base=None):
            cfg = compose(name, overrides=[*free, f"hydra.searchpath=[{search_path}]"])
        with open_dict(cfg):
            cfg.setdefault("s2l", {})
        OmegaConf.to_container(cfg, resolve=True)
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"recipe {config_name}: {_reason(error)}") from error
    return cfg


def require_values(cfg: DictConfig) -> None:
    """Raise ConfigError for a key that has to be set and is not; those of a reward model only where one is on."""
    unread = () if OmegaConf.select(cfg, "reward.reward_model.enable") else ("reward.reward_model.",)
    for key in sorted(OmegaConf.missing_keys(cfg)):
        if not key.startswith(unread):
            value = "vllm" if key.endswith("rollout.name") else "VALUE"
            raise ConfigError(f"{key} is not set and has no default. Set {key}={value}.")


def search_folders(config_dirs: Iterable[Path] = ()) -> list[Path]:
    """Existing folders that hold recipes, in the order of precedence."""
    given = [Path(folder) for folder in config_dirs]
    for folder in given:
        if not folder.is_dir():
            raise ConfigError(f"--config-dir {folder}: no such folder.")
    candidates = [*given, Path("recipes"), PACKAGED_RECIPES]
    return list(dict.fromkeys(folder.resolve() for folder in candidates if folder.is_dir()))


def recipe_names(folders: Iterable[Path]) -> list[str]:
    """Names of every training recipe in the folders, without the shared overlays, pipelines and studies."""
    found = {
        path.relative_to(folder).with_suffix("").as_posix()
        for folder in folders
        for path in (*folder.glob("*/*.yaml"), *folder.glob("*/*/*.yaml"))
        if path.parent.name != SHARED_FOLDER and not is_pipeline(path) and not is_study(path)
    }
    return sorted(found)


def is_pipeline(path: Path) -> bool:
    """Whether a YAML file is for ``s2l pipeline``: it has stages of its own or another pipeline's."""
    return _PIPELINE_KEY.search(path.read_text(encoding="utf-8", errors="replace")) is not None


def is_study(path: Path) -> bool:
    """Whether a YAML file is for ``s2l study``: it has arms."""
    return _STUDY_KEY.search(path.read_text(encoding="utf-8", errors="replace")) is not None


COMMANDS = {"pipeline": is_pipeline, "study": is_study}


def _refuse_other(path: Path, name: str, where: str = "", own: str | None = None) -> None:
    """Raise ConfigError for a file of another command than ``own``; None: a recipe's."""
    kind = next((command for command, is_of_it in COMMANDS.items() if is_of_it(path)), own)
    if kind != own:
        raise ConfigError(f"{where}{name}: this file is a {kind}. Run: s2l {kind} {name}")


def find_file(name: Path, command: str) -> Path:
    """A file, or a pipeline or study of the recipe folders by name (``sparse_to_dense/toy``, ``studies/s2l_po``).

    Raises:
        ConfigError: neither, which names the nearest; or a file of the other command.
    """
    folders = search_folders()
    for path in (name, *(folder / f"{str(name).removesuffix('.yaml')}.yaml" for folder in folders)):
        if path.is_file():
            _refuse_other(path, str(name), own=command)
            return path
    files = ((folder, file) for folder in folders for file in folder.glob("*/*.yaml"))
    known = sorted({str(file.relative_to(folder).with_suffix("")) for folder, file in files if COMMANDS[command](file)})
    raise ConfigError(f"{name}: no such {command} file.{did_you_mean(str(name), known)} There are: {', '.join(known)}.")


def verl_config_folder() -> Path:
    """verl's ``trainer/config``, found without importing verl."""
    spec = importlib.util.find_spec("verl")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("verl is not installed in this environment. Run `make setup`.")
    return Path(next(iter(spec.submodule_search_locations))) / "trainer" / "config"


def _locate(config_name: str, folders: Sequence[Path]) -> tuple[Path, str]:
    """The folder that is Hydra's root for the recipe, and the recipe's name below it."""
    if config_name.endswith((".yaml", ".yml")) and Path(config_name).is_file():
        path = Path(config_name).resolve()
        home = next((folder for folder in folders if folder in path.parents), path.parent)
        return home, path.relative_to(home).with_suffix("").as_posix()
    name = config_name.removesuffix(".yaml")
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder, name
    known = recipe_names(folders[:-1])
    raise ConfigError(
        f"--config-name {config_name}: no such recipe.{did_you_mean(name, known)} Recipes: {', '.join(known)}. "
        "A path to a YAML file works too."
    )


def quoted(text: str) -> str:
    """A text as a value of a Hydra override, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _reason(error: Exception) -> str:
    """Hydra wraps the cause in general words; both are wanted, on one line each."""
    lines = [*str(error).splitlines(), *(str(error.__cause__).splitlines() if error.__cause__ else [])]
    kept = [line.strip() for line in lines if line.strip() and not line.strip().startswith(("full_key", "object_type"))]
    return " ".join(dict.fromkeys(kept))
