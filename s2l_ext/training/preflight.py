"""Checked before Ray starts or any model loads: do the models, tokenizers, GPUs and data files fit the run?"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Any, cast

import pyarrow.parquet as pq
from jinja2 import TemplateError
from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.modes import mode_of
from s2l_ext.config.verl_settings import gpus_at, setting, whole_number
from s2l_ext.data.checks import JSON_LINES, check_alike, check_first_line, check_parquet, require_sources
from s2l_ext.data.gold_report import report
from s2l_ext.data.prompts import parquet_table, require_enough
from s2l_ext.data.tokenizers import date_warnings, tokenizer_here
from s2l_ext.data.traces import OPEN, TAIL_TOKENS
from s2l_ext.errors import DataError, ResourceError
from s2l_ext.methods.registry import S2LConfig, methods_of
from s2l_ext.rewards import math as math_reward
from s2l_ext.rewards import quantity, registry
from s2l_ext.rewards.math_settings import Settings, parse
from s2l_ext.training.inputs import (
    LEARNER_KEY,
    Inputs,
    chat_template,
    check_model_path,
    is_toy,
    local_files,
    make_toy,
    parquet_files,
    prompt_tokens,
)
from s2l_ext.training.judges import compares_with_one_text, is_mathematical, judge_of_run, judge_warnings
from s2l_ext.training.needed import needed_now, only_validates
from s2l_ext.training.schedule_rules import unmoved_warnings
from s2l_ext.training.verl_rules import LOOP_COLUMN, check_columns, check_loops
from s2l_ext.utils.ray_cluster import current_cluster

ROWS_CHECKED = 100_000
CPUS_OF_A_GPU = 3
"""That verl reserves beside each GPU of the learner."""
PROMPTS_READ = 32
"""Of those with the most characters and of those with the fewest, each is tokenized before a run."""
MATH_REWARDS = (math_reward.__name__, quantity.__name__)
"""Those that take the mathematical reward's keywords."""


def check_own_pool(cfg: DictConfig, s2l: S2LConfig) -> None:
    """Raise ResourceError for fewer GPUs or CPUs than the run needs, where this process starts Ray and knows how many
    there are."""
    available = available_gpus(cfg)
    if available is not None:
        _check_cpus(cfg)
        check_pool(cfg, needed_now(cfg, s2l), available)


def check_inputs(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Check models, tokenizers and data files; returns warnings. Raises ConfigError: a local model path does not exist
    or is no model; TokenizerMismatch: explorer and learner have different tokens; DataError: a data file is missing or
    lacks a column that verl reads."""
    needed = needed_now(cfg, s2l)
    inputs = Inputs(cfg, needed)
    check_model_path(LEARNER_KEY, cfg.actor_rollout_ref.model.path, inputs.trust)
    check_data(cfg)
    _check_media(inputs)
    _check_reward_keywords(cfg)
    if not only_validates(cfg) and inputs.rows is not None:
        require_enough(inputs.rows, whole_number(cfg, "data.train_batch_size"))
    warnings = [warning for method in methods_of(s2l, cfg) for warning in method.check_inputs(inputs)]
    warnings += [*judge_warnings(cfg, needed), *_drawn_anew(inputs), *_read_golds(cfg)]
    tokenizer = tokenizer_here(cfg.actor_rollout_ref.model.path, inputs.trust)
    warnings += [*_dated(cfg, tokenizer), *_open_thinking(cfg, tokenizer), *_cut_prompts(cfg, tokenizer)]
    return warnings + unmoved_warnings(s2l, cfg, inputs.steps)


# ---- GPUs ---------------------------------------------------------------------------------------------------------


def gpus_needed(cfg: DictConfig, s2l: S2LConfig) -> dict[str, int]:
    """GPUs (or logical GPU slots on a CPU machine) by who holds them; at a start, of what is needed then."""
    needed = {"learner": gpus_at(cfg, "trainer")}
    for method in methods_of(s2l, cfg):
        needed |= method.gpus()
    if mode_of(cfg) == "separate_async":
        needed["rollout"] = gpus_at(cfg, "actor_rollout_ref.rollout")
    if cfg.reward.reward_model.enable and cfg.reward.reward_model.enable_resource_pool:
        needed["reward model"] = gpus_at(cfg, "reward.reward_model")
    if setting(cfg, "distillation.enabled") and not s2l.distill:  # which sets verl's own up for its servers
        needed["verl's teacher"] = gpus_at(cfg, "distillation")
    return needed


def _check_cpus(cfg: DictConfig) -> None:
    """verl waits for its queue's storage without a time limit and without a word."""
    queue = cfg.transfer_queue.backend
    units = queue.SimpleStorage.num_data_storage_units if queue.storage_backend == "SimpleStorage" else 0
    cpus = cfg.ray_kwargs.ray_init.get("num_cpus") or len(os.sched_getaffinity(0))
    learner = CPUS_OF_A_GPU * gpus_at(cfg, "trainer")
    if units + 1 + learner > cpus:
        raise ResourceError(
            f"the run needs {units + 1 + learner} CPUs at least: {units} for the queue's storage "
            f"(transfer_queue.backend.SimpleStorage.num_data_storage_units), 1 for its controller, {learner} for the "
            f"learner. Ray has {cpus}. Lower the first to 1, or set ray_kwargs.ray_init.num_cpus."
        )


def available_gpus(cfg: DictConfig) -> int | None:
    """GPUs that Ray will offer on this machine; None when the run joins a cluster, which the trainer asks itself."""
    ray_init = cfg.ray_kwargs.ray_init
    if ray_init.get("address", "local") != "local" or os.environ.get("RAY_ADDRESS"):
        return None
    if ray_init.get("num_gpus") is not None:
        given = whole_number(cfg, "ray_kwargs.ray_init.num_gpus")
        return given if cfg.trainer.device == "cpu" else min(given, _count_devices())
    return None if current_cluster() else _count_devices()


def _count_devices() -> int:
    """Accelerators of this machine, which Ray does not count anew where it is told a number."""
    import torch

    return torch.npu.device_count() if hasattr(torch, "npu") else torch.cuda.device_count()


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
    given = cast(dict[str, Any], OmegaConf.to_object(cfg.reward.custom_reward_function))
    place, keywords = str(given.get("path") or ""), dict(given.get("reward_kwargs") or {})
    place = place.removeprefix("pkg://").replace("/", ".")
    if place == registry.__name__:
        place = getattr(registry.named(keywords.pop("reward", None)), "__module__", "")
    if place in MATH_REWARDS:
        parse(Settings, keywords)


# ---- data ---------------------------------------------------------------------------------------------------------


def check_data(cfg: DictConfig) -> None:
    if OmegaConf.select(cfg, "data.custom_cls.path"):
        return
    one_answer = compares_with_one_text(judge_of_run(cfg))
    for key in ("train_files", "val_files"):
        if not cfg.data.get(key):
            raise DataError(
                f"data.{key}={cfg.data.get(key)}: verl reads at least one file there, also where it is unused."
            )
        for path in local_files(cfg.data.get(key)):
            _check_file(f"data.{key}", path, cfg.data.prompt_key, one_answer)
        parquet = parquet_files(cfg, key)
        check_alike(parquet)
        if cfg.reward.reward_manager.source == "register":  # of verl's, which read it
            require_sources(parquet)


def _check_file(key: str, path: Path, prompt_key: str, one_answer: bool) -> None:
    if not path.is_file():
        raise DataError(f"{key}={path}: no such file. {_fix_of_missing(path)}")
    if path.suffix == ".parquet":
        check_parquet(path, prompt_key=prompt_key, max_rows=ROWS_CHECKED, one_answer=one_answer)
    elif path.suffix in JSON_LINES:
        check_first_line(path, prompt_key)


def _fix_of_missing(path: Path) -> str:
    if is_toy(path):
        return f"Run `{make_toy()}` to make it."
    hint = "; `s2l data gsm8k` makes GSM8K's" if "gsm8k" in str(path).lower() else ""
    return f"Check the path{hint} (docs/data.md)."


def _read_golds(cfg: DictConfig) -> list[str]:
    """Print what the mathematical reward reads of the answers; a warning where that is not the whole."""
    own_class = OmegaConf.select(cfg, "data.custom_cls.path")
    if own_class or not is_mathematical(judge_of_run(cfg)):
        return []
    files = dict.fromkeys(path for key in ("train_files", "val_files") for path in local_files(cfg.data.get(key)))
    found = report([path for path in files if path.suffix == ".parquet"])
    print("\n".join(found.as_lines()), file=sys.stderr)
    warning = found.warning()
    return [warning] if warning else []


def _dated(cfg: DictConfig, tokenizer: Any) -> list[str]:
    path, template = cfg.actor_rollout_ref.model.path, chat_template(cfg, tokenizer)
    options = OmegaConf.select(cfg, "data.apply_chat_template_kwargs") or {}
    return date_warnings(f"{LEARNER_KEY}={path}", template if isinstance(template, str) else str(template), options)


def _open_thinking(cfg: DictConfig, tokenizer: Any) -> list[str]:
    key = "reward.custom_reward_function.reward_kwargs"
    knows = judge_of_run(cfg) in registry.BUILT_IN.values() and judge_of_run(cfg) != registry.BUILT_IN["toy"]
    if not (knows and tokenizer and chat_template(cfg, tokenizer)):
        return []
    with contextlib.suppress(TemplateError):
        end = tokenizer.decode(prompt_tokens(cfg, tokenizer)([{"role": "user", "content": "?"}])[-TAIL_TOKENS:])
        if end.rstrip().endswith(OPEN) and setting(cfg, f"{key}.thinking") != "opened":
            return [
                f"the chat template of {LEARNER_KEY} opens the thinking, so an answer in thinking that is never closed "
                f"is paid. Set +{key}.thinking=opened."
            ]
    return []


def _cut_prompts(cfg: DictConfig, tokenizer: Any) -> list[str]:
    """verl cuts off the beginning of a prompt that is too long, where it does not leave the row out. Raises DataError:
    no prompt fits."""
    warnings, most, key = [], whole_number(cfg, "data.max_prompt_length"), "data.max_prompt_length"
    for files in ("train_files", "val_files"):
        try:
            lengths = _prompt_lengths(cfg, parquet_files(cfg, files), tokenizer)
        except TemplateError as error:
            warnings.append(f"data.{files}: the learner's chat template refuses a prompt, and verl applies it: {error}")
            continue
        fix = f"Set {key}={max(lengths, default=0)}"
        if lengths and min(lengths) > most:
            raise DataError(
                f"{key}={most}: no prompt of data.{files} fits, the shortest has {min(lengths)} tokens. {fix}, the "
                "longest."
            )
        if max(lengths, default=0) > most and not cfg.data.filter_overlong_prompts:
            warnings.append(
                f"{key}={most}: verl cuts off the beginning of longer prompts, and the longest of data.{files} has "
                f"{max(lengths)} tokens. {fix}, or data.filter_overlong_prompts=true to leave them out."
            )
    return warnings


def _prompt_lengths(cfg: DictConfig, files: list[Path], tokenizer: Any) -> list[int]:
    """Tokens of the prompts with the fewest and the most characters; none where verl would not read text."""
    if not (files and tokenizer and chat_template(cfg, tokenizer)):
        return []
    chats = [chat for chat in parquet_table(files).read(cfg.data.prompt_key)[:ROWS_CHECKED] if _is_text(chat)]
    chats.sort(key=lambda chat: sum(len(message["content"]) for message in chat))
    tokens_of = prompt_tokens(cfg, tokenizer)
    return [len(tokens_of(chat)) for chat in (*chats[:PROMPTS_READ], *chats[-PROMPTS_READ:])]


def _is_text(chat: Any) -> bool:
    return isinstance(chat, list) and all(isinstance(one.get("content"), str) for one in chat)


def _drawn_anew(inputs: Inputs) -> list[str]:
    """verl chooses ``train_max_samples`` rows at random where it shuffles, by ``data.seed``."""
    data, rows = inputs.cfg.data, sum(pq.read_metadata(path).num_rows for path in inputs.files)
    if not 0 < data.train_max_samples < rows or not data.shuffle or data.seed is not None:
        return []
    return [
        f"data.train_max_samples={data.train_max_samples} of {rows} rows are drawn without data.seed: a resumed run, "
        "or another arm of a comparison, trains on other rows. Set data.seed."
    ]


def _check_media(inputs: Inputs) -> None:
    s2l, table = inputs.needed, inputs.table
    columns = {name for path in inputs.files for name in pq.read_schema(path).names}
    check_columns(columns, s2l, inputs.cfg)
    if LOOP_COLUMN in columns and table and s2l.offline_explorer:
        check_loops(table.read(LOOP_COLUMN), s2l, f"column {LOOP_COLUMN} of data.train_files")
