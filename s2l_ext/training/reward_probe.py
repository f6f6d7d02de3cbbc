"""Is there a reward for the data, and does it say how correct an answer is? Asked with an empty answer, before models
load."""

from __future__ import annotations

import asyncio
import inspect
import numbers
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn, resolve_reward_manager_cls
from verl.utils.reward_score import get_default_compute_score

from s2l_ext.errors import ConfigError, DataError, S2LError
from s2l_ext.methods.registry import S2LConfig, accuracy_settings
from s2l_ext.training.inputs import local_files

ROW_COLUMNS = ("data_source", "reward_model", "extra_info")
FUNCTION_KEY = "reward.custom_reward_function"
ARGUMENTS = ("data_source", "solution_str", "ground_truth", "extra_info")
"""Keywords by which verl calls a reward function."""
MODEL_ARGUMENTS = ("reward_router_address", "reward_model_tokenizer")
"""And those that it adds where a reward model runs."""
MANAGERS_METRICS = ("reward", "overlong", "overlong_reward")
"""Metrics of a group that verl's managers give, whatever the function returns."""


def check_reward(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Refuse data without a reward (DataError), and a reward without what the run reads of it, ``acc`` too where a
    feature needs it (ConfigError). Returns a warning when a function whose ``acc`` is needed could not be asked; the
    first step then tells."""
    needing = " and ".join(accuracy_settings(s2l, cfg))
    if needing:
        _refuse_late_judge(cfg, needing)
    own, own_name = _own_function(cfg)  # before the manager: its file may register one
    _require_manager(cfg)
    _require_rewards(cfg)
    function, name = (own, own_name) if own else _verls_function(cfg, needing)
    rows = _rows_to_ask(cfg.data.train_files)
    if needing and (function is None or not rows):
        return [
            f"{needing} needs a reward with `acc`, which could not be checked before the run. If it is missing, the "
            "first step ends the run."
        ]
    if function is None or not (needing or cfg.reward.reward_manager.source == "register"):
        return []
    return list(dict.fromkeys(warning for row in rows for warning in _check_answer(cfg, needing, function, name, row)))


def _check_answer(cfg: DictConfig, needing: str, function: Any, name: str, row: dict[str, Any]) -> list[str]:
    try:
        answer = _ask(function, row)
    except S2LError:
        raise
    except Exception as error:
        if not needing:
            return []
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [
            f"{needing} needs a reward with `acc`; {name} could not be asked with an empty answer ({reason}); the "
            "first step tells."
        ]
    name = f"{name} (data_source {row.get('data_source')})"
    if needing:
        _require_accuracy(answer, needing, name)
    if isinstance(answer, dict):
        _require_group_metric(cfg, answer, name)
    score = answer.get("score") if isinstance(answer, dict) else answer
    if isinstance(answer, dict) and score is None:
        raise ConfigError(
            f"{name} returns {', '.join(map(str, answer))} and no score, which verl takes for the reward."
        )
    if not (isinstance(score, numbers.Real) or getattr(score, "shape", None) == ()):  # of numpy and torch
        raise ConfigError(
            f"{name} gives the reward {score!r}, and verl takes a number only. Return a number, or a mapping with one "
            "under score."
        )
    return []


def _require_accuracy(answer: Any, needing: str, name: str) -> None:
    if not isinstance(answer, dict):
        raise ConfigError(
            f"{needing} needs the verifier's correctness, but {name} returns a bare {type(answer).__name__} "
            f"({answer!r}), which verl would take for it, shaped or not. "
            'Return {"score": reward, "acc": 1.0 if correct else 0.0}, as s2l_ext.rewards.math does.'
        )
    accuracy = answer.get("acc")
    if accuracy is None:
        raise ConfigError(
            f"{needing} needs the verifier's correctness, but {name} returns only {', '.join(map(str, answer))}. "
            "Add 'acc': 1.0 if correct else 0.0 to what it returns."
        )
    if isinstance(accuracy, str) or not 0 <= float(accuracy) <= 1:
        raise ConfigError(f"{needing} needs acc in [0, 1], and {name} returns acc={accuracy!r}.")


def _require_group_metric(cfg: DictConfig, answer: dict[str, Any], name: str) -> None:
    groups = OmegaConf.select(cfg, "algorithm.filter_groups")
    if groups and groups.enable and groups.metric not in (None, *MANAGERS_METRICS, *answer):
        raise ConfigError(
            f"algorithm.filter_groups.metric={groups.metric}: {name} returns only {', '.join(map(str, answer))}. Add "
            "it to what it returns, or set the metric to reward."
        )


def _require_manager(cfg: DictConfig) -> None:
    """verl makes its reward workers after the models."""
    key, manager = "reward.reward_manager", cfg.reward.reward_manager
    try:
        resolve_reward_manager_cls(cfg)
    except Exception as error:
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConfigError(f"{key}.name={manager.name}: verl cannot load it ({why}).") from error
    buffer = OmegaConf.select(cfg, "reward.reward_kwargs.overlong_buffer_cfg.enable")
    if manager.name == "dapo" and buffer and OmegaConf.select(cfg, "reward.reward_kwargs.max_resp_len") is None:
        raise ConfigError(
            f"{key}.name=dapo with reward.reward_kwargs.overlong_buffer_cfg.enable=True needs "
            "+reward.reward_kwargs.max_resp_len, for instance ${data.max_response_length}."
        )


def _own_function(cfg: DictConfig) -> tuple[Any, str]:
    """The user's reward function and what to call it; None where the run names none."""
    path = OmegaConf.select(cfg, f"{FUNCTION_KEY}.path")
    if not path:
        return None, ""
    name = f"{FUNCTION_KEY} {OmegaConf.select(cfg, f'{FUNCTION_KEY}.name')} of {path}"
    try:
        function: Any = get_custom_reward_fn(cfg)
    except Exception as error:
        raise ConfigError(f"{name} cannot be loaded ({type(error).__name__}: {error}).") from error
    if cfg.reward.reward_manager.source != "register":  # a manager of the user's own may call it otherwise
        return function, name
    plain, options = function.args
    given = {**dict.fromkeys([*ARGUMENTS, *(MODEL_ARGUMENTS if cfg.reward.reward_model.enable else ())]), **options}
    try:
        inspect.signature(plain).bind(**given)
    except ValueError:  # one written in C, which does not tell
        return function, name
    except TypeError as error:
        raise ConfigError(
            f"{name} cannot be called as verl does, by keywords ({', '.join(given)}): {error}."
        ) from error
    return function, name


def _refuse_late_judge(cfg: DictConfig, needing: str) -> None:
    model = cfg.reward.reward_model
    if model.enable and not model.enable_resource_pool:
        raise ConfigError(
            f"{needing} needs the verifier's correctness with each row, but a reward model that shares the learner's "
            "GPUs judges later and passes on a score only. Set reward.reward_model.enable_resource_pool=True or "
            "reward.reward_model.enable=False."
        )


def _verls_function(cfg: DictConfig, needing: str) -> tuple[Any, str]:
    """verl's reward function and what to call it; None when a reward model or your own reward manager judges."""
    if cfg.reward.reward_model.enable and needing:
        raise ConfigError(
            f"{needing} needs the verifier's correctness, and reward.reward_model gives a score only. "
            f"Set {FUNCTION_KEY}.path and .name to a function that returns score and acc."
        )
    manager = cfg.reward.reward_manager
    if manager.source != "register" or cfg.reward.reward_model.enable:
        return None, str(manager.name)
    return get_default_compute_score(manager.name), "verl's default_compute_score"


def _require_rewards(cfg: DictConfig) -> None:
    manager = cfg.reward.reward_manager
    if OmegaConf.select(cfg, f"{FUNCTION_KEY}.path") or cfg.reward.reward_model.enable or manager.source != "register":
        return
    function = get_default_compute_score(manager.name)
    for key in ("train_files", "val_files"):
        rows = _rows_to_ask(cfg.data.get(key))
        unknown = sorted(str(row.get("data_source")) for row in rows if _does_not_know(function, row))
        if unknown:
            raise DataError(
                f"data.{key}: verl has no reward for data_source {', '.join(unknown)}, and {FUNCTION_KEY} is "
                f"not set. Set {FUNCTION_KEY}.path=pkg://s2l_ext.rewards.math {FUNCTION_KEY}.name=compute_score, or "
                "your own (docs/rewards.md)."
            )


def _does_not_know(function: Any, row: dict[str, Any]) -> bool:
    """verl says so with a NotImplementedError; what a reward makes of an empty answer else is its own affair."""
    try:
        _ask(function, row)
    except Exception as error:
        return isinstance(error, NotImplementedError)
    return False


def _rows_to_ask(files: Any) -> list[dict[str, Any]]:
    """The first row of each data source in local parquet files; verl's default reward depends on the source."""
    rows: dict[Any, dict[str, Any]] = {}
    for path in local_files(files):
        if path.suffix == ".parquet" and path.is_file():
            for row in _first_by_source(pq.ParquetFile(path)):
                rows.setdefault(row.get("data_source"), row)
    return list(rows.values())


def _first_by_source(file: pq.ParquetFile) -> list[dict[str, Any]]:
    wanted = [name for name in ROW_COLUMNS if name in file.schema_arrow.names]
    sources = file.read(["data_source"]).column(0).to_pylist() if "data_source" in wanted else [None]
    firsts = {source: position for position, source in reversed(list(enumerate(sources)))}
    table = file.read(wanted)
    return [table.slice(position, 1).to_pylist()[0] for position in firsts.values() if position < table.num_rows]


def _ask(function: Any, row: dict[str, Any]) -> Any:
    answer = function(
        data_source=row.get("data_source"),
        solution_str="",
        ground_truth=(row.get("reward_model") or {}).get("ground_truth"),
        extra_info=dict(row.get("extra_info") or {}),
    )
    if not inspect.iscoroutine(answer):
        return answer
    if not inspect.iscoroutinefunction(function):
        answer.close()
        raise ConfigError(
            f"{FUNCTION_KEY} returns a coroutine and is not declared `async def`, so verl would take the coroutine for "
            "the reward. Declare it `async def`."
        )
    return asyncio.run(answer)
