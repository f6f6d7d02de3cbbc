"""Settings of a verl command that verl 0.9.1 ignores, or that it fails on after the models have loaded."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from itertools import product

from omegaconf import DictConfig

from s2l_ext.config.model_files import ROOM, full_rows
from s2l_ext.config.modes import learner_samples, mode_of
from s2l_ext.config.verl_settings import flattened, gpus_at, plain_setting, setting, whole_number
from s2l_ext.errors import ConfigError

ACTOR, ROLLOUT = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
OLD_REWARD_BLOCKS = ("custom_reward_function", "reward_model", "sandbox_fusion")
"""Blocks that verl 0.9.1 still takes and reads in its fully asynchronous trainer alone."""
NEW_REWARD_KEYS = {
    "reward_model.reward_manager": "reward.reward_manager.name",
    "reward_model.num_workers": "reward.num_workers",
    "reward_model.model.path": "reward.reward_model.model_path",
    "reward_model.reward_kwargs": "reward.reward_kwargs",
}
CLIP_READERS = ("dppo_tv", "dppo_kl", "clip_cov")
"""Policy losses that read ``clip_ratio`` itself."""
UNGROUPED_ESTIMATORS = {"gae", "reinforce_plus_plus", "remax"}
UNFED_ESTIMATORS = {"gdpo", "optimal_token_baseline", "tir_optimal_token_baseline"}
OLD_METRICS = ("seq_reward", "seq_final_reward")
"""Names that DAPO's scripts give ``filter_groups.metric``."""
FSDP, SCHEDULERS = ("fsdp", "fsdp2"), ("constant", "cosine")
CONTENTS = ("save_contents", "load_contents")
RESUMED_WITHOUT = {
    "optimizer": "starts with a new one",
    "extra": "starts its learning-rate schedule and random numbers anew",
}
RESUME_MODES = ("auto", "disable", "resume_path")
DEFAULT_CLIP, UNREAD_CLIP = 0.2, 1.0
"""verl's defaults of ``clip_ratio`` and of ``grad_clip``, which its engines left behind."""


def check_command(cfg: DictConfig) -> list[str]:
    """Returns warnings. Raises ConfigError for a setting that would be ignored, or end the run late."""
    _refuse(cfg, RULES)
    return [*_unread_clip(cfg), *_unread_do_sample(cfg), *_lone_rows(cfg), *_left_out(cfg), *_cut_rows(cfg)]


def check_steps(cfg: DictConfig) -> None:
    """What the rules of methods count on. Raises ConfigError for a run without a step, or of no known start."""
    _refuse(cfg, (_resume, _steps))


def _refuse(cfg: DictConfig, rules: Iterable[Callable[[DictConfig], Iterator[str]]]) -> None:
    for rule in rules:
        problem = next(rule(cfg), None)
        if problem is not None:
            raise ConfigError(problem)


# ---- refused ------------------------------------------------------------------------------------------------------


def _old_rewards(cfg: DictConfig) -> Iterator[str]:
    for block in OLD_REWARD_BLOCKS:
        for name, value in flattened(plain_setting(cfg, block) or {}).items():
            if value is None:
                continue
            key = f"{block}.{name}"
            old = next((old for old in NEW_REWARD_KEYS if key == old or key.startswith(f"{old}.")), None)
            new = f"{NEW_REWARD_KEYS[old]}{key.removeprefix(old)}" if old else f"reward.{key}"
            yield f"{key}={value} would be ignored: verl 0.9.1 reads rewards from the block `reward`. Set {new}."


def _clip_ratio(cfg: DictConfig) -> Iterator[str]:
    ratio, low, high = (setting(cfg, f"{ACTOR}.clip_ratio{end}") for end in ("", "_low", "_high"))
    mode = setting(cfg, f"{ACTOR}.policy_loss.loss_mode")
    if None not in (low, high) and ratio not in (None, DEFAULT_CLIP, low, high) and mode not in CLIP_READERS:
        yield (
            f"{ACTOR}.clip_ratio={ratio} would be ignored: verl clips at clip_ratio_low={low} and "
            f"clip_ratio_high={high}. Set {ACTOR}.clip_ratio_low and {ACTOR}.clip_ratio_high."
        )


def _greedy(cfg: DictConfig) -> Iterator[str]:
    if setting(cfg, f"{ROLLOUT}.temperature") == 0 and not setting(cfg, "trainer.val_only"):
        yield (
            f"{ROLLOUT}.temperature=0: all rows of a group would be the same, so no advantage is left, and the "
            "learner's logits are divided by 0. Set it above 0 (1.0)."
        )
    number, temperature = (setting(cfg, f"{ROLLOUT}.val_kwargs.{name}") for name in ("n", "temperature"))
    if (number or 1) > 1 and temperature == 0:
        yield (
            f"{ROLLOUT}.val_kwargs.n={number} with val_kwargs.temperature=0: the {number} responses to a prompt would "
            f"be the same. Set {ROLLOUT}.val_kwargs.temperature above 0, or n=1."
        )


def _contents(cfg: DictConfig) -> Iterator[str]:
    if not _saves_shards(cfg):
        return
    for name in CONTENTS:
        contents = plain_setting(cfg, f"{ACTOR}.checkpoint.{name}")
        if contents is not None and "model" not in contents:
            yield (
                f"{ACTOR}.checkpoint.{name}={contents} has no model: a resumed run would count its steps on from the "
                "checkpoint with the weights of its start. Add model."
            )


def _resume(cfg: DictConfig) -> Iterator[str]:
    mode, path = setting(cfg, "trainer.resume_mode"), setting(cfg, "trainer.resume_from_path")
    if mode not in RESUME_MODES:
        yield f"trainer.resume_mode={mode}: verl knows {', '.join(RESUME_MODES)}."
    if mode == "resume_path" and path and not re.fullmatch(r".*global_step_\d+", str(path)):  # verl reads its end
        yield f"trainer.resume_from_path={path} names no checkpoint. Give the folder .../global_step_N of a run."


def _critic(cfg: DictConfig) -> Iterator[str]:
    if setting(cfg, "algorithm.adv_estimator") == "gae" and setting(cfg, "critic.enable") is False:
        yield "algorithm.adv_estimator=gae needs a critic, and critic.enable is false. Set critic.enable=true, or grpo."


def _steps(cfg: DictConfig) -> Iterator[str]:
    given = setting(cfg, "trainer.total_training_steps") is not None
    key = "trainer.total_training_steps" if given else "trainer.total_epochs"
    if not setting(cfg, "trainer.val_only") and whole_number(cfg, key) < 1:
        yield f"{key}={setting(cfg, key)}: the run would end without a step. Set it to 1 or more."


def _fetches(cfg: DictConfig) -> Iterator[str]:
    size = setting(cfg, "data.gen_batch_size")
    if not size or mode_of(cfg) != "sync" or setting(cfg, "algorithm.filter_groups.enable"):
        return
    batch = whole_number(cfg, "data.train_batch_size")
    if batch % size:
        yield (
            f"data.gen_batch_size={size} does not divide data.train_batch_size={batch}, and verl fetches whole ones. "
            "Leave it out where algorithm.filter_groups.enable is false."
        )


def _split_gpus(cfg: DictConfig) -> Iterator[str]:
    """verl asserts these after it has built the models."""
    sizes = [f"{name}_model_parallel_size" for name in ("tensor", "pipeline")] + ["data_parallel_size"]
    engine = math.prod(setting(cfg, f"{ROLLOUT}.{name}") or 1 for name in sizes)
    gpus = gpus_at(cfg, "trainer")
    samplers = [gpus] if learner_samples(cfg) else []
    samplers += [gpus_at(cfg, ROLLOUT)] if mode_of(cfg) == "separate_async" else []
    for number in samplers:
        if number % engine:
            yield (
                f"Engines of {engine} GPUs do not divide the {number} that sample ({ROLLOUT}.{sizes[0]} x "
                "pipeline_model_parallel_size x data_parallel_size). Set sizes whose product divides it, or other GPUs."
            )
    sharded = setting(cfg, f"{ACTOR}.strategy") in FSDP
    for name in (
        "ulysses_sequence_parallel_size",
        "fsdp_config.ulysses_sequence_parallel_size",
        "fsdp_config.fsdp_size",
    ):
        size = setting(cfg, f"{ACTOR}.{name}")
        if sharded and isinstance(size, int) and size > 1 and gpus % size:
            yield f"{ACTOR}.{name}={size} does not divide the learner's {gpus} GPUs. Set a divisor of {gpus}."


def _group_metric(cfg: DictConfig) -> Iterator[str]:
    metric = setting(cfg, "algorithm.filter_groups.metric")
    if setting(cfg, "algorithm.filter_groups.enable") and metric in OLD_METRICS:
        yield (
            f"algorithm.filter_groups.metric={metric} is of earlier versions: verl 0.9.1 knows `reward`, the row's "
            "reward, and what the reward function returns beside it, such as acc. Set it to reward."
        )


def _scheduler(cfg: DictConfig) -> Iterator[str]:
    key = f"{ACTOR}.optim.lr_scheduler_type"
    if setting(cfg, f"{ACTOR}.strategy") in FSDP and setting(cfg, key) not in (None, *SCHEDULERS):
        yield f"{key}={setting(cfg, key)}: verl's FSDP engines know {' and '.join(SCHEDULERS)}."


def _estimator(cfg: DictConfig) -> Iterator[str]:
    name = setting(cfg, "algorithm.adv_estimator")
    if name in UNFED_ESTIMATORS:
        yield (
            f"algorithm.adv_estimator={name} reads columns that verl 0.9.1's V1 trainer does not fetch: the first step "
            "would fail. Set algorithm.adv_estimator=grpo."
        )


def _correction(cfg: DictConfig) -> Iterator[str]:
    """What the V1 trainer does with rollout correction: nothing without the sampler's log-probs, or in bypass mode."""
    prefix = "algorithm.rollout_correction"
    bypass = setting(cfg, f"{prefix}.bypass_mode")
    asked = [name for name in ("rollout_is", "rollout_rs") if setting(cfg, f"{prefix}.{name}") is not None]
    recorded = f"{ROLLOUT}.calculate_log_probs"
    if (bypass or asked) and not setting(cfg, recorded):
        yield (
            f"{prefix}.{asked[0] if asked else 'bypass_mode'} reads the sampler's log-probs, and {recorded}="
            f"{setting(cfg, recorded)}. Set {recorded}=True."
        )
    if bypass and asked:
        yield (
            f"{prefix}.{asked[0]} with {prefix}.bypass_mode=True would be ignored: verl's V1 trainer makes neither "
            f"weights nor rejections there. Set {prefix}.bypass_mode=False, or leave {asked[0]} out."
        )


def _custom_sampler(cfg: DictConfig) -> Iterator[str]:
    key = "trainer.v1.sampler.custom_sampler"
    given = {name: setting(cfg, f"{key}.{name}") for name in ("path", "name")}
    if any(given.values()) and not all(given.values()):
        yield f"{key}: verl takes a sampler of your own by path and name, and has {given}. Set both, or neither."


RULES = (
    *(_old_rewards, _clip_ratio, _greedy, _contents, _critic, _fetches, _split_gpus, _group_metric, _scheduler),
    *(_estimator, _correction, _custom_sampler),
)


# ---- warned of ----------------------------------------------------------------------------------------------------


def _unread_clip(cfg: DictConfig) -> Iterator[str]:
    key, read = f"{ACTOR}.grad_clip", f"{ACTOR}.optim.clip_grad"
    if setting(cfg, key) not in (None, UNREAD_CLIP):
        yield (
            f"{key}={setting(cfg, key)} has no effect: verl 0.9.1 clips gradients at {read}={setting(cfg, read)}. Set "
            "that key."
        )


def _unread_do_sample(cfg: DictConfig) -> Iterator[str]:
    key = f"{ROLLOUT}.val_kwargs"
    sample, temperature = setting(cfg, f"{key}.do_sample"), setting(cfg, f"{key}.temperature")
    if sample is not None and temperature is not None and bool(sample) != (temperature > 0):
        how = "samples" if temperature > 0 else "takes the likeliest token"
        yield (
            f"{key}.do_sample={sample} has no effect: verl 0.9.1 reads {key}.temperature={temperature} alone, so "
            f"validation {how}."
        )


def _lone_rows(cfg: DictConfig) -> Iterator[str]:
    name = setting(cfg, "algorithm.adv_estimator")
    if setting(cfg, f"{ROLLOUT}.n") == 1 and name not in UNGROUPED_ESTIMATORS and not setting(cfg, "s2l.distill"):
        yield (
            f"{ROLLOUT}.n=1 with algorithm.adv_estimator={name}: a group of one row has no baseline, so its reward "
            "is its advantage. Set n to 2 or more."
        )


def _left_out(cfg: DictConfig) -> Iterator[str]:
    for (what, then), name in product(RESUMED_WITHOUT.items(), CONTENTS if _saves_shards(cfg) else ()):
        contents = plain_setting(cfg, f"{ACTOR}.checkpoint.{name}")
        if contents is not None and what not in contents:
            yield f"{ACTOR}.checkpoint.{name}={contents} has no {what}: a resumed run {then} and goes on differently."


def _cut_rows(cfg: DictConfig) -> Iterator[str]:
    full = full_rows(cfg)
    if full:
        yield f"{full}: verl ends a response where its row is full, and says nothing. {ROOM}"


def _saves_shards(cfg: DictConfig) -> bool:
    saves = (setting(cfg, "trainer.save_freq") or 0) > 0
    return saves and setting(cfg, f"{ACTOR}.strategy") in FSDP
