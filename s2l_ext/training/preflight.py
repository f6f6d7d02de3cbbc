"""Looked at before Ray starts or any model loads: do the models, tokenizers, GPUs and data files fit the run?"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.model_files import is_local, needs_own_code, parameter_count
from s2l_ext.config.modes import mode_of
from s2l_ext.config.run_steps import RunSteps, run_steps
from s2l_ext.config.verl_settings import whole_number
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.gold_report import report
from s2l_ext.data.prompts import (
    match_pass_rates,
    parquet_table,
    prompt_ids,
    read_pass_rates,
    require_enough,
    tiers_of,
)
from s2l_ext.data.tokenizers import Trust, compare, load_tokenizer, trust_of
from s2l_ext.errors import ConfigError, DataError, ResourceError
from s2l_ext.methods.curriculum.config import CurriculumConfig
from s2l_ext.methods.explorer.config import ExplorerConfig
from s2l_ext.methods.explorer.store_checks import check_store
from s2l_ext.methods.guidance.config import GuidanceConfig
from s2l_ext.methods.guidance.trace_checks import check_traces
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.rewards import math as math_reward
from s2l_ext.rewards import parts, quantity, registry
from s2l_ext.store.reader import is_store
from s2l_ext.training.combination_rules import LOOP_COLUMN, check_columns, check_loops
from s2l_ext.training.judges import compares_with_one_text, is_mathematical, judge_of_run, judge_warnings
from s2l_ext.training.needed import needed_now, only_validates
from s2l_ext.training.schedule_rules import check_schedules

LEARNER_KEY = "actor_rollout_ref.model.path"
EXPLORER_KEY = "s2l.explorer.model_path"
TEACHER_KEY = "s2l.distill.teacher_path"
ROWS_CHECKED = 100_000
MATH_REWARDS = (math_reward.__name__, quantity.__name__)
"""Those that take the mathematical reward's keywords."""


def preflight(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Check everything that can be known on the driver without loading a model.

    Returns:
        Warnings, one sentence each.

    Raises:
        ConfigError: a local model path does not exist or is no model.
        TokenizerMismatch: explorer and learner speak different tokens.
        ResourceError: fewer GPUs than the run needs.
        DataError: a data file is missing or lacks a column that verl reads.
    """
    available = available_gpus(cfg)
    if available is not None:
        check_pool(cfg, needed_now(cfg, s2l), available)
    return check_inputs(cfg, s2l)


def check_inputs(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Models, tokenizers and data files alone; the trainer asks again when verl's own command started it."""
    whole, s2l, trust = s2l, needed_now(cfg, s2l), trust_of(cfg)
    _check_model_path(LEARNER_KEY, cfg.actor_rollout_ref.model.path, trust)
    if s2l.explorer and s2l.explorer.is_live:
        _check_model_path(EXPLORER_KEY, s2l.explorer.model, trust)
    if s2l.distill and s2l.distill.teacher_path:
        _check_model_path(TEACHER_KEY, s2l.distill.teacher_path, trust)
    _check_data(cfg)
    _check_media(cfg, s2l)
    _check_reward_keywords(cfg)
    if not only_validates(cfg):
        _check_step(cfg)
    if s2l.curriculum:
        _check_prompts(cfg, s2l.curriculum)
    warnings = _check_guidance(cfg, s2l.guidance) if s2l.guidance else []
    if s2l.distill and s2l.distill.teacher_path:
        warnings += _teacher_fits(cfg, s2l.distill.teacher_path)
    if s2l.explorer:
        warnings += _explorer_fits(cfg, s2l.explorer, s2l.distill is not None) if s2l.explorer.is_live else []
        warnings += check_store(cfg, s2l, _parquet_files(cfg)) if not s2l.explorer.is_live else []
    warnings += [*judge_warnings(cfg, s2l), *_drawn_anew(cfg), *_read_golds(cfg)]
    return warnings + check_schedules(whole, cfg, steps_of_run(cfg), _counted_rows(cfg))


# ---- models -------------------------------------------------------------------------------------------------------


def _check_model_path(key: str, path: str, trust: Trust) -> None:
    if not is_local(path):
        return
    folder = Path(path).expanduser()
    sizes = " --sizes small,medium,large" if folder.name == "large" else ""
    fix = f"Run `{_make_toy()}{sizes}` to make the toy models." if _is_toy(folder) else "Check the path."
    if not folder.is_dir():
        raise ConfigError(f"{key}={path}: no such folder. {fix}")
    if not (folder / "config.json").is_file():
        raise ConfigError(f"{key}={path}: not a Hugging Face model folder (config.json is missing). {fix}")
    if not trust.code and needs_own_code(folder):
        raise ConfigError(trust.needed(key, path))


def _is_toy(path: Path) -> bool:
    return "toy" in path.parts or path.is_relative_to(_toy_folder())


def _toy_folder() -> str:
    return os.environ.get("S2L_TOY_DIR", "outputs/toy")


def _make_toy() -> str:
    return f"s2l data toy --out {_toy_folder()}"


def _teacher_fits(cfg: DictConfig, teacher_path: str) -> list[str]:
    """It scores token ids that the learner's template rendered, or that a sampler was given in that form."""
    student_path = cfg.actor_rollout_ref.model.path
    warnings = compare(student_path, teacher_path, LEARNER_KEY, TEACHER_KEY, trust_of(cfg), both_render=False)
    student, teacher = parameter_count(student_path), parameter_count(teacher_path)
    if student is None or teacher is None or teacher >= student:
        return warnings
    return [
        *warnings,
        f"the teacher is smaller than the student: {TEACHER_KEY}={teacher_path} has {teacher:,} parameters, "
        f"{LEARNER_KEY}={student_path} has {student:,}. Sparse-to-dense distils the larger model; are they swapped?",
    ]


def _explorer_fits(cfg: DictConfig, explorer: ExplorerConfig, teaches: bool = False) -> list[str]:
    learner_path = cfg.actor_rollout_ref.model.path
    warnings = compare(learner_path, explorer.model, LEARNER_KEY, EXPLORER_KEY, trust_of(cfg), both_render=False)
    return warnings if teaches else [*warnings, *_size_warnings(learner_path, explorer.model)]


def _size_warnings(learner_path: str, explorer_path: str) -> list[str]:
    learner, explorer = parameter_count(learner_path), parameter_count(explorer_path)
    if learner is None or explorer is None or explorer <= learner:
        return []
    return [
        f"the explorer is larger than the learner: {EXPLORER_KEY}={explorer_path} has {explorer:,} parameters, "
        f"{LEARNER_KEY}={learner_path} has {learner:,}. S2L-PO explores with the smaller sibling; are they swapped?"
    ]


# ---- GPUs ---------------------------------------------------------------------------------------------------------


def gpus_needed(cfg: DictConfig, s2l: S2LConfig) -> dict[str, int]:
    """GPUs (or logical GPU slots on a CPU machine) by who holds them; at a start, of what is needed then."""
    needed = {"learner": whole_number(cfg, "trainer.nnodes") * whole_number(cfg, "trainer.n_gpus_per_node")}
    if s2l.explorer:
        needed |= {"explorer": s2l.explorer.n_gpus} if s2l.explorer.n_gpus else {}
    if mode_of(cfg) == "separate_async":
        nodes, size = (whole_number(cfg, f"actor_rollout_ref.rollout.{name}") for name in ("nnodes", "n_gpus_per_node"))
        needed["rollout"] = nodes * size
    if s2l.distill and not s2l.distill.in_actor:
        needed["teacher servers"] = s2l.distill.nnodes * s2l.distill.n_gpus_per_node
    reward = cfg.reward.reward_model
    if reward.enable and reward.enable_resource_pool:
        needed["reward model"] = reward.nnodes * reward.n_gpus_per_node
    return needed


def available_gpus(cfg: DictConfig) -> int | None:
    """GPUs that Ray will offer on this machine; None when the run joins a cluster, which the trainer asks itself."""
    ray_init = cfg.ray_kwargs.ray_init
    if ray_init.get("address", "local") != "local" or os.environ.get("RAY_ADDRESS"):
        return None
    if ray_init.get("num_gpus") is not None:
        told = whole_number(cfg, "ray_kwargs.ray_init.num_gpus")
        return told if cfg.trainer.device == "cpu" else min(told, _devices())
    return None if current_cluster() else _devices()


def _devices() -> int:
    """Accelerators of this machine, which Ray does not count anew where it is told a number."""
    import torch

    return torch.npu.device_count() if hasattr(torch, "npu") else torch.cuda.device_count()


def current_cluster() -> str | None:
    """Address of the cluster that `ray start` made on this node, if any: ``ray.init`` without an address joins it."""
    path = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir()) / "ray" / "ray_current_cluster"
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def keep_own_ray_here() -> None:
    """Have a Ray that this process starts for itself listen at 127.0.0.1 only. Must run before Ray is imported.

    Otherwise Ray listens at every address, and the servers of verl and TransferQueue, which ask for no key, at the
    node's. Ray reads the variable when it is imported: with 0 it does what it does on Windows and macOS.
    """
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")


def check_pool(cfg: DictConfig, s2l: S2LConfig, available: int) -> None:
    """Raise ResourceError unless ``available`` GPUs hold learner and explorer side by side."""
    needed = gpus_needed(cfg, s2l)
    total = sum(needed.values())
    if total <= available:
        return
    parts = " + ".join(f"{count} ({who})" for who, count in needed.items())
    fix = (
        f"Set ray_kwargs.ray_init.num_gpus={total}"
        if cfg.trainer.device == "cpu"
        else "Lower trainer.n_gpus_per_node or s2l.explorer.n_gpus_per_node, or start on more GPUs"
    )
    raise ResourceError(f"the run needs {total} GPUs = {parts}, but {available} are available. {fix}.")


# ---- reward -------------------------------------------------------------------------------------------------------


def _check_reward_keywords(cfg: DictConfig) -> None:
    """This package's rewards would refuse a wrong name or keyword at their first call, after models have loaded."""
    given = dict(OmegaConf.to_object(cfg.reward.custom_reward_function))
    place, keywords = str(given.get("path") or ""), dict(given.get("reward_kwargs") or {})
    place = place.removeprefix("pkg://").replace("/", ".")
    if place == registry.__name__:
        place = getattr(registry.named(keywords.pop("reward", None)), "__module__", "")
    if place not in MATH_REWARDS:
        return
    math_reward.check_keywords(keywords)
    if keywords.get("overlong_buffer") is not None and cfg.reward.reward_manager.source == "register":
        parts.check_length(keywords.get("length_tokenizer"))


# ---- data ---------------------------------------------------------------------------------------------------------


def _check_data(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "data.custom_cls.path"):
        return
    one_answer = compares_with_one_text(judge_of_run(cfg))
    for key in ("train_files", "val_files"):
        for path in _files(cfg.data.get(key)):
            _check_file(f"data.{key}", path, cfg.data.prompt_key, one_answer)


def _check_file(key: str, path: Path, prompt_key: str, one_answer: bool) -> None:
    if not path.is_file():
        fix = f"Run `{_make_toy()}` to make it." if _is_toy(path) else "Check the path; `s2l data gsm8k` makes GSM8K's."
        raise DataError(f"{key}={path}: no such file. {fix}")
    if path.suffix == ".parquet":
        check_parquet(path, prompt_key=prompt_key, max_rows=ROWS_CHECKED, one_answer=one_answer)


def _read_golds(cfg: DictConfig) -> list[str]:
    """Print what the mathematical reward reads of the answers; a warning where that is not the whole."""
    own_class = OmegaConf.select(cfg, "data.custom_cls.path")
    if own_class or not is_mathematical(judge_of_run(cfg)):
        return []
    files = dict.fromkeys(path for key in ("train_files", "val_files") for path in _files(cfg.data.get(key)))
    found = report([path for path in files if path.suffix == ".parquet"])
    print("\n".join(found.as_lines()), file=sys.stderr)
    warning = found.warning()
    return [warning] if warning else []


def _drawn_anew(cfg: DictConfig) -> list[str]:
    """verl chooses ``train_max_samples`` rows at random where it shuffles, by ``data.seed``."""
    most, rows = cfg.data.train_max_samples, sum(pq.read_metadata(path).num_rows for path in _parquet_files(cfg))
    if not 0 < most < rows or not cfg.data.shuffle or cfg.data.seed is not None:
        return []
    return [
        f"data.train_max_samples={most} of {rows} rows are drawn without data.seed: a resumed run, or another arm of a "
        "comparison, trains on other rows. Set data.seed."
    ]


def _check_media(cfg: DictConfig, s2l: S2LConfig) -> None:
    files = _parquet_files(cfg)
    columns = {name for path in files for name in pq.read_schema(path).names}
    check_columns(columns, s2l, cfg)
    if LOOP_COLUMN in columns and s2l.explorer and not s2l.explorer.is_live:
        check_loops(parquet_table(files).read(LOOP_COLUMN), s2l, f"column {LOOP_COLUMN} of data.train_files")


def _check_guidance(cfg: DictConfig, guidance: GuidanceConfig) -> list[str]:
    files = _parquet_files(cfg)
    if not files:
        return [f"s2l.guidance.trace={guidance.trace}: traces of data that is not parquet are looked at when sampled."]
    tokenizer = load_tokenizer(cfg.actor_rollout_ref.model.path, LEARNER_KEY, trust_of(cfg))
    return check_traces(parquet_table(files), guidance, tokenizer, cfg.data.prompt_key)


def _parquet_files(cfg: DictConfig) -> list[Path]:
    """The training files, if all of them are local parquet that verl's own data set reads; else none."""
    named, files = cfg.data.train_files, list(_files(cfg.data.train_files))
    remote = len(files) < (1 if isinstance(named, str) else len(named or ()))
    own_class = OmegaConf.select(cfg, "data.custom_cls.path")
    return [] if remote or own_class or any(path.suffix != ".parquet" for path in files) else files


def _check_step(cfg: DictConfig) -> None:
    """Prompts for one step, before verl filters them: the trainer asks again afterwards."""
    files = _parquet_files(cfg)
    if files:
        require_enough(_rows(cfg, files), whole_number(cfg, "data.train_batch_size"))


def _check_prompts(cfg: DictConfig, curriculum: CurriculumConfig) -> None:
    """What the curriculum reads from the data, before verl filters it: the trainer asks again afterwards."""
    files = _parquet_files(cfg)
    if not files:
        return
    table = parquet_table(files)
    if curriculum.type == "easy_to_hard":
        tiers_of(table, curriculum.tier_column, curriculum.tier_order)


def check_warm_start(cfg: DictConfig, s2l: S2LConfig, resumed: Container[str]) -> None:
    """Does the file of start values speak of these prompts? A resumed curriculum does not read it.

    Raises:
        DataError: the file is missing or unreadable, or has prompt ids that the training data lacks.
    """
    files = _parquet_files(cfg)
    if s2l.curriculum is None or s2l.curriculum.warm_start is None or "curriculum" in resumed or not files:
        return
    ids = prompt_ids(parquet_table(files), cfg.data.prompt_key)
    path = s2l.curriculum.warm_start
    match_pass_rates(read_pass_rates(path), ids, path, strict=not is_store(path))  # a store may be of more prompts


def _rows(cfg: DictConfig, files: list[Path]) -> int:
    """Rows that verl reads: all of the files', or ``data.train_max_samples``."""
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    return min(rows, cfg.data.train_max_samples) if cfg.data.train_max_samples > 0 else rows


def _files(value: Any) -> Iterator[Path]:
    """Local files of ``data.train_files``: one path or a list."""
    if value is None:
        return
    for path in [value] if isinstance(value, str) else value:
        if "://" not in path:
            yield Path(path).expanduser()


def steps_of_run(cfg: DictConfig) -> RunSteps | None:
    """Steps until verl stops; None where neither the settings nor the data says it."""
    return run_steps(cfg, _steps_from_data(cfg))


def _steps_from_data(cfg: DictConfig) -> int | None:
    """At most this many steps: full batches of the parquet rows, times epochs. None when rows cannot be counted."""
    rows, batch = _counted_rows(cfg), whole_number(cfg, "data.train_batch_size")
    return None if rows is None or batch < 1 else rows // batch * whole_number(cfg, "trainer.total_epochs")


def _counted_rows(cfg: DictConfig) -> int | None:
    files = _parquet_files(cfg)
    return _rows(cfg, files) if files and all(path.is_file() for path in files) else None
