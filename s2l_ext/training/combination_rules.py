"""Parts of verl that a method, or verl's own engine, would read in another way than the configuration says."""

from __future__ import annotations

from collections.abc import Collection

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.methods.registry import S2LConfig

MODEL = "actor_rollout_ref.model"
LOOP_COLUMN = "agent_name"
"""Of the data; its values come before ``default_agent_loop``."""

MEDIA = ("image_key", "video_key", "audio_key")
"""Keys of ``data`` that name the columns of pictures, videos and sound."""


def check_combinations(s2l: S2LConfig, cfg: DictConfig) -> None:
    """Raise ConfigError on what would be ignored, or would fail in the middle of a step."""
    _check_engine(cfg)
    _check_lora(cfg)
    _check_turns(s2l, cfg)


def _check_engine(cfg: DictConfig) -> None:
    """verl builds an engine's settings from all keys that are there, and those of another engine are unknown to it."""
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}"
        if setting(cfg, f"{key}.strategy") == "megatron" and setting(cfg, f"{key}.fsdp_config") is not None:
            raise ConfigError(
                f"{key}.fsdp_config is set, by verl's default or by the recipe, and {key}.strategy=megatron does not "
                f"know it. Add model_engine=megatron ~{key}.fsdp_config to the command."
            )


def _check_lora(cfg: DictConfig) -> None:
    """verl 0.9.1 has two spellings: its FSDP engines read one, Megatron's the other, and vLLM's servers read both."""
    strategy = setting(cfg, "actor_rollout_ref.actor.strategy")
    plain, nested = setting(cfg, f"{MODEL}.lora_rank") or 0, setting(cfg, f"{MODEL}.lora.rank") or 0
    adapter = setting(cfg, f"{MODEL}.lora_adapter_path")
    if strategy == "megatron" and plain > 0 and nested <= 0:
        raise ConfigError(
            f"{MODEL}.lora_rank={plain} with actor.strategy=megatron: Megatron reads {MODEL}.lora.rank, so all weights "
            f"would be trained. Set {MODEL}.lora.rank={plain} and leave lora_rank out."
        )
    if strategy != "megatron" and nested > 0:
        raise ConfigError(
            f"{MODEL}.lora.rank={nested} with actor.strategy={strategy}: FSDP reads {MODEL}.lora_rank, so all weights "
            f"would be trained. Set {MODEL}.lora_rank={nested} and leave lora.rank out."
        )
    if strategy == "fsdp" and plain > 0 and setting(cfg, "trainer.device") == "cpu":
        raise ConfigError(
            f"{MODEL}.lora_rank={plain} with actor.strategy=fsdp on the CPU: verl hands vLLM an adapter without "
            "weights, and the run hangs. Set actor_rollout_ref.actor.strategy=fsdp2."
        )
    if strategy != "megatron" and adapter is not None and plain <= 0:
        raise ConfigError(
            f"{MODEL}.lora_adapter_path={adapter} with {MODEL}.lora_rank={plain}: FSDP loads no adapter at rank 0. Set "
            f"{MODEL}.lora_rank to the adapter's rank."
        )
    save = "actor_rollout_ref.actor.checkpoint.save_contents"
    if strategy != "megatron" and plain > 0 and "hf_model" in (setting(cfg, save) or []):
        raise ConfigError(
            f"{save} has hf_model with {MODEL}.lora_rank={plain}: verl 0.9.1 writes base and adapter under names that "
            "no loader knows. Leave hf_model out (`s2l pipeline` cannot hand such a model on)."
        )


def _check_turns(s2l: S2LConfig, cfg: DictConfig) -> None:
    key = "actor_rollout_ref.rollout.agent.default_agent_loop"
    check_loops([setting(cfg, key)], s2l, key)


def check_loops(names: Collection[str], s2l: S2LConfig, where: str) -> None:
    """Raise ConfigError on an agent loop of several turns where stored rollouts answer.

    Args:
        names: of agent loops.
        where: the setting or column that names them.
    """
    if s2l.offline_explorer and "tool_agent" in names:
        raise ConfigError(
            f"{where}=tool_agent with s2l.explorer.source=offline: a stored rollout has one turn, and the loop asks "
            "for more. Set s2l.explorer.source=live, or name single_turn_agent there."
        )


def check_columns(columns: Collection[str], s2l: S2LConfig, cfg: DictConfig) -> None:
    """Raise ConfigError where the data has pictures, videos or sound and a method knows of text only.

    Args:
        columns: of the training data.
    """
    keys = {f"data.{key}={setting(cfg, f'data.{key}')}": setting(cfg, f"data.{key}") for key in MEDIA}
    found = [key for key, column in keys.items() if column in columns]
    reasons = {
        "s2l.guidance": s2l.guidance and "places text tokens behind the prompt's, and is not tried with other media",
        "s2l.explorer.source=offline": s2l.offline_explorer
        and "hands over rollouts that `s2l explore` sampled from text alone",
        "s2l.distill.teacher_placement=local": s2l.distill
        and s2l.distill.in_actor
        and "replaces the output layer inside the model, and is not tried with vision models",
    }
    for feature, reason in reasons.items():
        if found and reason:
            raise ConfigError(
                f"{found[0]}: the data has this column. {feature} {reason}. Drop an empty "
                "column, or leave the feature out."
            )
