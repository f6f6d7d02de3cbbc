"""Who judges: the reward of a run, that of a store, and whether they are the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import plain_setting, setting
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.rewards import registry
from s2l_ext.store.reader import is_store, read_manifest
from s2l_ext.utils.sources import user_source

VERLS_OWN = "verl's own reward for each data_source"
ONE_TEXT = ("math", "quantity", "choice", "toy")
"""Rewards of this package that compare with one text."""
OWN_FUNCTIONS = ("s2l.curriculum.type", "s2l.kl.rho")
"""Keys beside the reward's that may name a class or function of the user's."""


def judge_of_run(cfg: DictConfig) -> str:
    """``package.module:function`` of the run's reward, or :data:`VERLS_OWN`. Raises ConfigError:
    ``reward_kwargs.reward`` names no reward."""
    key = "reward.custom_reward_function"
    path, name = setting(cfg, f"{key}.path"), setting(cfg, f"{key}.name") or registry.FUNCTION
    if not path:
        return VERLS_OWN
    place = registry.place_of(f"{path}:{name}")
    if place != registry.place_of(registry.__name__):
        return place
    keywords = plain_setting(cfg, f"{key}.reward_kwargs") or {}
    return registry.place_of(str(keywords.get("reward") or place))


def own_code(cfg: DictConfig) -> list[str]:
    """Source files of the user's that a run calls, where they can be found."""
    places = [judge_of_run(cfg), *(str(setting(cfg, key)) for key in OWN_FUNCTIONS)]
    return [source for place in places if ":" in place and (source := user_source(place))]


def compares_with_one_text(judge: str) -> bool:
    """Whether the reward is one of this package's that take one text as ground truth."""
    return judge in {registry.BUILT_IN[name] for name in ONE_TEXT}


def is_mathematical(judge: str) -> bool:
    """Whether the reward reads its golds as :func:`s2l_ext.rewards.gold_reading.read_gold` does."""
    return judge == registry.BUILT_IN["math"]


def judge_warnings(cfg: DictConfig, s2l: S2LConfig) -> list[str]:
    """Stores that the run reads and that another reward judged, one sentence or two each."""
    judge = judge_of_run(cfg)
    warnings = []
    for key, folder in _stores(s2l):
        graded = read_manifest(Path(folder).expanduser(), key).fingerprint.get("reward")
        names = [registry.place_of(str(name)) for name in graded] if isinstance(graded, list) else []
        if any(name != judge for name in names):
            again = "" if judge == VERLS_OWN else f"sample it with `s2l explore --reward {judge}`, or "
            warnings.append(
                f"{key}={folder} was judged by {', '.join(names)}, this run by {judge}: pass rates and right answers "
                f"of the store are another judge's (its responses are judged anew). To have one judge, {again}set "
                "reward.custom_reward_function to the store's."
            )
    return warnings


def _stores(s2l: S2LConfig) -> Iterator[tuple[str, str]]:
    named = {
        "s2l.explorer.store": s2l.offline_explorer.store if s2l.offline_explorer else None,
        "s2l.curriculum.warm_start": s2l.curriculum.start_file if s2l.curriculum else None,
        "s2l.guidance.teacher_rollouts": s2l.guidance.teacher_rollouts if s2l.guidance else None,
    }
    return ((key, folder) for key, folder in named.items() if folder and is_store(folder))
