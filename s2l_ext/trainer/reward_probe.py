"""Does the reward function say how correct an answer is? Asked once, with an empty answer, before models load."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from omegaconf import DictConfig, OmegaConf
from verl.trainer.ppo.reward import get_custom_reward_fn
from verl.utils.reward_score import get_default_compute_score

from s2l_ext.config.expo_checks import needs_accuracy
from s2l_ext.config.schema import S2LConfig
from s2l_ext.errors import ConfigError

FUNCTION_KEY = "reward.custom_reward_function"


def check_reward(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Refuse a reward without ``acc`` where a feature needs it.

    Returns:
        A warning when the reward function could not be asked; the first step then tells.

    Raises:
        ConfigError: the reward function cannot be loaded, returns a bare number, or a mapping without ``acc``.
    """
    needing = " and ".join(needs_accuracy(s2l.kl, s2l.curriculum))
    if not needing:
        return []
    function, name = _function(cfg, needing)
    row = _first_row(cfg)
    if function is None or row is None:
        return [f"{needing} needs a reward with `acc`, which could not be asked for beforehand."]
    try:
        answer = _ask(function, row)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        return [f"{needing} needs a reward with `acc`; {name} could not be asked with an empty answer ({reason})."]
    if not isinstance(answer, dict):
        raise ConfigError(
            f"{needing} needs the verifier's correctness, but {name} returns a bare {type(answer).__name__} "
            f"({answer!r}), which verl would take for it, shaped or not. "
            'Return {"score": reward, "acc": 1.0 if correct else 0.0}, as s2l_ext.rewards.math does.'
        )
    if answer.get("acc") is None:
        raise ConfigError(
            f"{needing} needs the verifier's correctness, but {name} returns only {', '.join(map(str, answer))}. "
            "Add 'acc': 1.0 if correct else 0.0 to what it returns."
        )
    return []


def _function(cfg: DictConfig, needing: str) -> tuple[Any, str]:
    """The reward function and what to call it; None when only a reward manager of one's own knows."""
    path = OmegaConf.select(cfg, f"{FUNCTION_KEY}.path")
    if path:
        name = f"{FUNCTION_KEY} {OmegaConf.select(cfg, f'{FUNCTION_KEY}.name')} of {path}"
        try:
            return get_custom_reward_fn(cfg), name
        except Exception as error:
            raise ConfigError(f"{name} cannot be loaded ({type(error).__name__}: {error}).") from error
    if cfg.reward.reward_model.enable:
        raise ConfigError(
            f"{needing} needs the verifier's correctness, and reward.reward_model gives a score only. "
            f"Set {FUNCTION_KEY}.path and .name to a function that returns score and acc."
        )
    manager = cfg.reward.reward_manager
    if manager.source != "register":
        return None, str(manager.name)
    return get_default_compute_score(manager.name), "verl's default_compute_score"


def _first_row(cfg: DictConfig) -> dict[str, Any] | None:
    files = cfg.data.train_files
    path = files if isinstance(files, str) else files[0]
    if "://" in path or not path.endswith(".parquet"):
        return None
    batch = next(pq.ParquetFile(Path(path).expanduser()).iter_batches(batch_size=1), None)
    return batch.to_pylist()[0] if batch is not None and batch.num_rows else None


def _ask(function: Any, row: dict[str, Any]) -> Any:
    answer = function(
        data_source=row.get("data_source"),
        solution_str="",
        ground_truth=(row.get("reward_model") or {}).get("ground_truth"),
        extra_info=dict(row.get("extra_info") or {}),
    )
    return asyncio.run(answer) if inspect.iscoroutine(answer) else answer
