"""A study file: YAML to arms with composed configurations, matched in what the file says. Nothing has run yet."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from s2l_ext.config.limits import limited
from s2l_ext.config.nearest import did_you_mean
from s2l_ext.config.parse import parse_block
from s2l_ext.config.verl_settings import plain_setting
from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.seeds import FEWEST_SEEDS
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.report.ledger import FILTER_KEY
from s2l_ext.studies.local.rules import check_local
from s2l_ext.studies.study.results import AFTER, BEFORE, planned

Engine = Literal["local", "verl"]
LEARNING_RATE = "actor_rollout_ref.actor.optim.lr"
MODEL = "actor_rollout_ref.model.path"
FIRST = re.compile(r"=first:([\w.-]+)$")
"""An override that takes the model which an earlier run left."""
MEASURE = (
    *("data.val_files", "data.val_max_samples", "data.max_prompt_length", "data.max_response_length"),
    *("data.shuffle", "data.filter_overlong_prompts", "data.prompt_key", "data.apply_chat_template_kwargs"),
    *(f"reward.custom_reward_function.{name}" for name in ("path", "name", "reward_kwargs")),
    "reward.reward_manager.name",
    *(f"actor_rollout_ref.rollout.val_kwargs.{name}" for name in ("n", "temperature", "top_p", "top_k")),
)
"""Settings by which accuracy is measured."""


@dataclass(frozen=True)
class ArmBlock:
    """``recipe`` and ``overrides`` of one arm; ``recipe`` None is the study's."""

    recipe: str | None = None
    overrides: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class StudyBlock:
    """The whole file.

    ``overrides`` go to every arm before its own. ``seeds``: how many, from ``first_seed``; one has no interval.
    ``matched``: quantities in which arms must agree within ``tolerance``.
    ``first``: runs without a row, one for each seed. ``KEY=first:NAME`` in a later override, here or of an arm, is the
    model that NAME's run of the same seed left; NAME may be an arm too. What it spent counts for all that take it.
    """

    name: str
    recipe: str
    arms: dict[str, Any]
    baseline: str
    engine: Engine = "local"
    overrides: list[str] = field(default_factory=list)
    first: dict[str, Any] = field(default_factory=dict)
    seeds: int = limited(10, at_least=FEWEST_SEEDS)
    first_seed: int = limited(1, at_least=0)
    matched: list[str] = field(default_factory=lambda: ["prompts", "optimizer_steps", "rollouts"])
    tolerance: float = limited(0.05, at_least=0)


@dataclass(frozen=True)
class Arm:
    """``cfg`` is composed with the study's and the arm's overrides, before the seed; in the place of a model that
    another run leaves it has the one that run starts from. ``row``: whether it stands in ``arms``, not in ``first``."""

    name: str
    recipe: str
    overrides: tuple[str, ...]
    cfg: DictConfig
    row: bool = True

    @property
    def needs(self) -> tuple[str, ...]:
        """Runs whose models it takes."""
        return tuple(match[1] for word in self.overrides if (match := FIRST.search(word)))

    def filled(self, model_of: Callable[[str], str]) -> list[str]:
        """The overrides, with a model in the place of each name of a run."""
        return [FIRST.sub(lambda match: f"={model_of(match[1])}", word) for word in self.overrides]


@dataclass(frozen=True)
class Study:
    """``runs``: all that are needed, each after those whose models it takes. ``shown``: names of the arms asked for."""

    block: StudyBlock
    runs: tuple[Arm, ...]
    shown: tuple[str, ...]

    @property
    def arms(self) -> tuple[Arm, ...]:
        return tuple(run for run in self.runs if run.name in self.shown)

    @property
    def seeds(self) -> range:
        return range(self.block.first_seed, self.block.first_seed + self.block.seeds)

    @property
    def name(self) -> str:
        return self.block.name

    @property
    def baseline(self) -> Arm:
        return next(arm for arm in self.arms if arm.name == self.block.baseline)

    def first_of(self, *runs: Arm) -> list[Arm]:
        """The runs whose models these take, and those that they take, in their order."""
        needed = {name for run in runs for name in run.needs}
        for one in reversed(self.runs):
            needed |= set(one.needs) if one.name in needed else set()
        return [one for one in self.runs if one.name in needed]


def read_study(
    path: Path,
    engine: Engine | None = None,
    arms: Sequence[str] = (),
    seeds: int | None = None,
    baseline: str | None = None,
) -> Study:
    """Read and check a file.

    Args:
        engine, seeds, baseline: take the place of the file's.
        arms: only these, beside the baseline.

    Raises:
        ConfigError: no such file, no YAML, an unknown key or quantity, fewer than two arms or seeds, a recipe that
            does not compose or that the engine does not know, or arms that are not matched.
    """
    block = parse_block(StudyBlock, _load(path), path.name)
    count = block.seeds if seeds is None else seeds
    if count < FEWEST_SEEDS:
        raise ConfigError(f"--seeds {count}: an interval over seeds needs at least {FEWEST_SEEDS}. Give more seeds.")
    engine, baseline = engine or block.engine, baseline or block.baseline
    block = replace(block, engine=engine, baseline=baseline, seeds=count)
    _check_names(block, path.name, arms)
    every: list[Arm] = []
    for part, runs in (("first", block.first), ("arms", block.arms)):
        for name, given in runs.items():
            every.append(_arm(block, f"{path.name}.{part}.{name}", name, given, every))
    shown = tuple(name for name in block.arms if not arms or name in {*arms, block.baseline})
    study = Study(block, tuple(every), shown)
    needed = [*study.arms, *study.first_of(*study.arms)]
    study = replace(study, runs=tuple(run for run in every if run in needed))
    _check_matched(study, path.name)
    _check_measured(study, path.name)
    return study


def _load(path: Path) -> dict[str, Any]:
    try:
        content: Any = OmegaConf.to_container(OmegaConf.load(path))  # refuses a key that is there twice
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}). Give a study's YAML file.") from error
    except (yaml.YAMLError, UnicodeError, OmegaConfBaseException) as error:
        raise ConfigError(f"{path}: no YAML ({' '.join(str(error).split())[:400]}).") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: holds no mapping. A study has name, recipe, arms and baseline.")
    return content


def _check_names(block: StudyBlock, where: str, arms: Sequence[str]) -> None:
    for name in (*block.arms, *block.first):
        if not isinstance(name, str) or not name or "/" in name or name.startswith("."):
            raise ConfigError(
                f"{where}: {name!r} cannot name an arm or a run of `first`: the name is a folder's, so it is text "
                "(quote a number) without / that begins with no dot. Rename it."
            )
    if len(block.arms) < 2:
        raise ConfigError(f"{where}.arms: {len(block.arms)} arm. A study compares at least two.")
    if twice := set(block.arms) & set(block.first):
        raise ConfigError(
            f"{where}: {', '.join(sorted(twice))} in `first` and in `arms`. An arm hands its model on too."
        )
    for key, name in [("baseline", block.baseline), *(("--arm", arm) for arm in arms)]:
        if name not in block.arms:
            near, arms_there = did_you_mean(name, block.arms), ", ".join(block.arms)
            raise ConfigError(f"{where}: {key}={name} is no arm.{near} Arms: {arms_there}.")
    for name in block.matched:
        if name not in (*BEFORE, *AFTER):
            known = [*BEFORE, *AFTER]
            raise ConfigError(f"{where}.matched: {name!r} is no quantity.{did_you_mean(name, known)} Known: {known}.")


def _arm(block: StudyBlock, where: str, name: str, given: Any, before: Sequence[Arm]) -> Arm:
    value = given or {}
    own = parse_block(ArmBlock, value if isinstance(value, dict) else {"overrides": value}, where)
    recipe, overrides = own.recipe or block.recipe, (*block.overrides, *own.overrides)
    starts = {one.name: str(one.cfg.actor_rollout_ref.model.path) for one in before}
    arm = Arm(name, recipe, overrides, OmegaConf.create(), row=name in block.arms)
    for needed in arm.needs:
        if needed not in starts:
            raise ConfigError(
                f"{where}: first:{needed} is no run before it.{did_you_mean(needed, starts)} There are: "
                f"{', '.join(starts) or 'none'}."
            )
    try:
        cfg = compose_config(recipe, arm.filled(starts.__getitem__))
        planned(cfg, block.engine)
        if block.engine == "local":
            check_local(cfg, parse_s2l(cfg.s2l))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return replace(arm, cfg=cfg)


def _check_matched(study: Study, where: str) -> None:
    """Raises ConfigError for arms that a run would not make comparable, with both values."""
    base, filtered = planned(study.baseline.cfg, study.block.engine), plain_setting(study.baseline.cfg, FILTER_KEY)
    sampled = [name for name in study.block.matched if name != "optimizer_steps"]
    for arm in study.arms:
        own = planned(arm.cfg, study.block.engine)
        if sampled and bool(plain_setting(arm.cfg, FILTER_KEY)) != bool(filtered):
            raise ConfigError(
                f"{where}: arm {arm.name} and the baseline {study.baseline.name} differ in {FILTER_KEY}. Groups that "
                f"it drops are sampled and not counted, so {', '.join(sampled)} cannot be matched. Set it alike, or "
                "take them out of `matched` and say so."
            )
        for name in study.block.matched:
            if name in BEFORE and abs(own[name] - base[name]) > study.block.tolerance * base[name]:
                raise ConfigError(
                    f"{where}: arm {arm.name} has {own[name]} {name}, the baseline {study.baseline.name} {base[name]}. "
                    f"Change {BEFORE[name]}, or take {name} out of `matched` and say so."
                )


def _check_measured(study: Study, where: str) -> None:
    """Raises ConfigError for arms whose accuracies are not of the same problems, judged and sampled alike."""
    for run in study.runs:
        if int(run.cfg.trainer.test_freq) < 1:
            raise ConfigError(
                f"{where}: {run.name} has trainer.test_freq={run.cfg.trainer.test_freq}, so its end "
                "would not be measured. Set it to 1 or more; the last step is measured too."
            )
    for arm in study.arms:
        for key in MEASURE:
            own, base = plain_setting(arm.cfg, key), plain_setting(study.baseline.cfg, key)
            if own != base:
                raise ConfigError(
                    f"{where}: arm {arm.name} has {key}={own}, the baseline {study.baseline.name} {base}, so their "
                    "accuracies are not of the same measurement. Set it in the study's `overrides`, for every arm."
                )
