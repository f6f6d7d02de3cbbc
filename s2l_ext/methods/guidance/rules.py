"""Rules of ``s2l.guidance``: among its own keys, and against verl's settings."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from s2l_ext.config.model_files import ROOM, full_rows
from s2l_ext.config.run_steps import RunSteps
from s2l_ext.config.verl_settings import GROUP_SIZE, setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.guidance.config import GuidanceConfig, LengthConfig, StepwiseLength
from s2l_ext.methods.guidance.length import Length, guided_sessions

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.config import ExplorerConfig


def check_guidance(guidance: GuidanceConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    if guidance.teacher_rollouts is not None and guidance.trace != GuidanceConfig.trace:
        raise ConfigError(
            f"s2l.guidance.trace={guidance.trace} would be ignored with s2l.guidance.teacher_rollouts="
            f"{guidance.teacher_rollouts}: traces come from one place. Leave one of them out."
        )
    build_length(guidance.length, total_steps=1)
    _check_budget(guidance, cfg)
    key = "algorithm.rollout_correction.bypass_mode"
    if guidance.loss_on_guidance and setting(cfg, key):
        raise ConfigError(
            f"{key}=True with s2l.guidance.loss_on_guidance=True: it takes the sampler's log-probs for the old ones, "
            f"and guidance tokens were placed, not sampled. Set {key}=False, or s2l.guidance.loss_on_guidance=False."
        )
    group = whole_number(cfg, GROUP_SIZE)
    guided = guided_sessions(guidance.alpha, group)
    if guided == 0:
        return ["s2l.guidance.alpha=0: no session is guided. Set s2l.guidance=null to leave the feature out."]
    if guided == group and guidance.length.follows == "learner_unguided":
        raise ConfigError(
            f"s2l.guidance.length.estimate_from=learner_unguided with s2l.guidance.alpha={guidance.alpha:g}: all "
            f"{group} sessions of "
            "a group are guided, so there is no accuracy to read. Set estimate_from=learner or a smaller alpha."
        )
    return list(_uneven_rewards(guidance, cfg))


def _uneven_rewards(guidance: GuidanceConfig, cfg: DictConfig) -> Iterator[str]:
    """Parts of a reward that grow with a row's tokens, of which guided rows have another number."""
    if setting(cfg, "algorithm.use_kl_in_reward") and not guidance.loss_on_guidance:
        yield (
            "algorithm.use_kl_in_reward=True with s2l.guidance: the KL is summed over the tokens that a row sampled, "
            "and guided rows sampled fewer, so they gain advantage by that alone. Set actor_rollout_ref.actor."
            "use_kl_loss=True in its place."
        )
    overlong = setting(cfg, "reward.reward_kwargs.overlong_buffer_cfg.enable")
    if overlong and setting(cfg, "reward.reward_manager.name") == "dapo":
        yield (
            "reward.reward_kwargs.overlong_buffer_cfg with s2l.guidance: verl counts a row's guidance as its response, "
            "so guided rows lose reward by the guidance's length. Leave the buffer out, or keep "
            "s2l.guidance.length.max_length small beside it."
        )


def _check_budget(guidance: GuidanceConfig, cfg: DictConfig) -> None:
    budget = whole_number(cfg, "data.max_response_length")
    room = budget - guidance.min_continuation
    if room < 1:
        raise ConfigError(
            f"s2l.guidance.min_continuation={guidance.min_continuation} leaves nothing of data.max_response_length="
            f"{budget} for guidance. Lower s2l.guidance.min_continuation or raise data.max_response_length."
        )
    longest = build_length(guidance.length, total_steps=1).longest
    key = "max_length" if guidance.length.follows else "initial"
    if longest > room:
        raise ConfigError(
            f"s2l.guidance.length.{key}={longest} is longer than the response budget: data.max_response_length="
            f"{budget} minus s2l.guidance.min_continuation={guidance.min_continuation} is {room}. Lower it to {room}, "
            "or raise data.max_response_length."
        )
    full = full_rows(cfg)
    if full:
        raise ConfigError(f"{full}: a guided prompt could fill it. {ROOM}")


def build_length(config: LengthConfig, total_steps: int) -> Length:
    """The controller or schedule that the block describes; ConfigError names the key. ``total_steps``: T of the
    decays."""
    if config.initial > config.max_length:
        raise ConfigError(
            f"s2l.guidance.length.initial={config.initial} is above s2l.guidance.length.max_length="
            f"{config.max_length}, the bound of every type. Lower initial or raise max_length."
        )
    try:
        return config.build(total_steps)
    except ConfigError as error:
        raise ConfigError(f"s2l.guidance.length: {error}") from None


def final_share(guidance: GuidanceConfig, explorer: ExplorerConfig | None, group_size: int) -> float | None:
    """Guided rows' share of the learner's when the explorer's schedule is over: their weight from the start. None: no
    explorer, not ``estimate_from: learner``, or it leaves no unguided rows."""
    if explorer is None or guidance.length.follows != "learner":
        return None
    left = group_size - explorer.build(group_size).slots(explorer.mix_steps + 1)
    guided = guided_sessions(guidance.alpha, group_size)
    return guided / left if guided < left else None


def check_stages(guidance: GuidanceConfig, steps: RunSteps) -> list[str]:
    """Does a stepwise length fall within the run?"""
    length = guidance.length
    if not isinstance(length, StepwiseLength) or length.every < steps.number:
        return []
    return [
        f"s2l.guidance.length.every={length.every} and the run has {steps.number} steps ({steps.source}): the stepwise "
        f"length never falls. Set it to {max(steps.number // 4, 1)}, which gives four stages, or use type=constant."
    ]
