"""What a run reads, checked before any model loads: paths of models, and the files of the training data."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.model_files import is_local, needs_own_code, vocabulary_rows
from s2l_ext.config.run_steps import RunSteps, run_steps
from s2l_ext.config.verl_settings import plain_setting, setting, whole_number
from s2l_ext.data.prompts import PromptTable, parquet_table
from s2l_ext.data.tokenizers import CUSTOM_TEMPLATE, Trust, require_rows, trust_of
from s2l_ext.errors import ConfigError
from s2l_ext.methods.registry import S2LConfig

LEARNER_KEY = "actor_rollout_ref.model.path"


@dataclass(frozen=True)
class Inputs:
    """Models and data of a run. ``cfg``: verl's whole configuration. ``needed``: the part of the ``s2l:`` block that
    this start of the run needs."""

    cfg: DictConfig
    needed: S2LConfig

    @cached_property
    def trust(self) -> Trust:
        """Whether a model's own code may run."""
        return trust_of(self.cfg)

    @cached_property
    def files(self) -> list[Path]:
        """The training files, if all of them are local parquet that verl's own data set reads; else none."""
        return parquet_files(self.cfg)

    @cached_property
    def table(self) -> PromptTable | None:
        """Their rows; None without such files."""
        return parquet_table(self.files) if self.files else None

    @cached_property
    def rows(self) -> int | None:
        """Rows that verl reads; None where they cannot be counted."""
        if not self.files or not all(path.is_file() for path in self.files):
            return None
        rows, most = sum(pq.read_metadata(path).num_rows for path in self.files), self.cfg.data.train_max_samples
        return min(rows, most) if most > 0 else rows

    @cached_property
    def steps(self) -> RunSteps | None:
        """Steps until verl stops; None where neither the settings nor the data says it."""
        batch, epochs = (whole_number(self.cfg, key) for key in ("data.train_batch_size", "trainer.total_epochs"))
        return run_steps(self.cfg, None if self.rows is None or batch < 1 else self.rows // batch * epochs)


def check_model_path(key: str, path: str, trust: Trust) -> None:
    """Raise ConfigError unless a local path is a model's folder that may be loaded and has a row for each token."""
    if not is_local(path):
        return
    folder = Path(path).expanduser()
    options = " --sizes small,medium,large" if folder.name == "large" else ""
    if folder.name.startswith("natural_"):
        options = f" --family natural --sizes {folder.name.removeprefix('natural_')}"
    fix = f"Run `{make_toy()}{options}` to make the toy models." if is_toy(folder) else "Check the path."
    if not folder.is_dir():
        raise ConfigError(f"{key}={path}: no such folder. {fix}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}={path}: not a Hugging Face model folder (config.json is missing). {fix}")
    if not trust.code and needs_own_code(folder):
        raise ConfigError(trust.needed(key, path))
    require_rows(key, path, vocabulary_rows(folder), trust)


def is_toy(path: Path) -> bool:
    """Whether a path is meant to be of the toy world."""
    return "toy" in path.parts or path.is_relative_to(_toy_folder())


def _toy_folder() -> str:
    return os.environ.get("S2L_TOY_DIR", "outputs/toy")


def make_toy() -> str:
    """The command that makes the toy world."""
    return f"s2l data toy --out {_toy_folder()}"


def chat_template(cfg: DictConfig, tokenizer: Any) -> Any:
    """The one that verl applies; None where there is none."""
    return setting(cfg, CUSTOM_TEMPLATE) or getattr(tokenizer, "chat_template", None)


def prompt_tokens(cfg: DictConfig, tokenizer: Any) -> Callable[[list[Any]], list[int]]:
    """A function from chat messages to the tokens that verl makes of them."""
    template, options = chat_template(cfg, tokenizer), plain_setting(cfg, "data.apply_chat_template_kwargs") or {}
    given = {"chat_template": template, "add_generation_prompt": True, "tokenize": True, "return_dict": False}
    return lambda chat: list(tokenizer.apply_chat_template(chat, **given, **options))


def parquet_files(cfg: DictConfig, key: str = "train_files") -> list[Path]:
    """Files of ``data.<key>``, if all of them are local parquet that verl's own data set reads; else none."""
    named, files = cfg.data.get(key), list(local_files(cfg.data.get(key)))
    remote = len(files) < (1 if isinstance(named, str) else len(named or ()))
    own_class = OmegaConf.select(cfg, "data.custom_cls.path")
    return [] if remote or own_class or any(path.suffix != ".parquet" for path in files) else files


def local_files(value: Any) -> Iterator[Path]:
    """Local files of a setting such as ``data.train_files``: one path or a list."""
    if value is None:
        return
    for path in [value] if isinstance(value, str) else value:
        if "://" not in path:
            yield Path(path).expanduser()


def steps_of_run(cfg: DictConfig) -> RunSteps | None:
    """Steps until verl stops; None where neither the settings nor the data says it."""
    return Inputs(cfg, S2LConfig()).steps
