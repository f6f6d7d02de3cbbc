"""Settings of verl's that a feature would silently override, that would silently switch it off, or that it needs."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from omegaconf import DictConfig

from s2l_ext.config.modes import MODE_KEY, mode_of
from s2l_ext.config.row_split import sequence_parallel_gpus
from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import ConfigError
from s2l_ext.methods.registry import S2LConfig, accuracy_settings

MANAGER_KEY = "actor_rollout_ref.rollout.agent.agent_loop_manager_class"
AGENT_LOOP_MANAGER = "s2l_ext.training.agent_loop.S2LAgentLoopManager"
LOSS_MODE = "actor_rollout_ref.actor.policy_loss.loss_mode"
AGGREGATION = "actor_rollout_ref.actor.loss_agg_mode"
LOOP_KEY = "actor_rollout_ref.rollout.agent.default_agent_loop"
LOOP_COLUMN = "agent_name"
"""Of the data; its values come before ``default_agent_loop``."""
MEDIA = ("image_key", "video_key", "audio_key")
"""Keys of ``data`` that name the columns of pictures, videos and sound."""
OWN_SAMPLING = ("__rollout_n__", "__do_sample__")
"""Columns from which verl takes a prompt's number of sessions, and whether it samples them."""
MODEL = "actor_rollout_ref.model"
ROUTER_REPLAY = ("megatron", "veomni")
"""Blocks of ``actor_rollout_ref.actor`` that can replay the experts which the rollout chose."""

WEIGHTED_LOSSES = frozenset(
    {"vanilla", "dppo_tv", "dppo_kl", "gspo", "sapo", "gpg", "clip_cov", "kl_cov", "dro", "cispo"}
)
"""Policy losses of verl 0.9.1 that multiply each token's loss by its ``rollout_is_weights``."""

OTHER_USE = {
    "bypass_mode": "computes its own weights and ignores these",
    "geo_mean": "takes one weight per sequence, so no token has its own",
}


def check_verl(s2l: S2LConfig, cfg: DictConfig) -> list[str]:
    """Apply every rule of this module; returns warnings. Raises ConfigError: a setting of verl's would be ignored, or
    would make a feature do nothing."""
    _check_engine(cfg)
    _check_sequence_parallel(cfg)
    _check_lora(cfg)
    check_loops([setting(cfg, LOOP_KEY)], s2l, LOOP_KEY)
    _refuse_other_manager(s2l, cfg)
    if s2l.any_method_on:
        _refuse_unweighted_loss(s2l, cfg)
        _refuse_replays(s2l, cfg)
        _refuse_unread(s2l, cfg)
    return list(_warnings(s2l, cfg))


def _refuse_other_manager(s2l: S2LConfig, cfg: DictConfig) -> None:
    manager = setting(cfg, MANAGER_KEY)
    if s2l.own_manager and manager and manager != AGENT_LOOP_MANAGER:
        features = ("s2l.explorer", s2l.explorer), ("s2l.guidance", s2l.guidance), ("s2l.rollout.session_timeout_s", 1)
        feature = next(name for name, value in features if value)
        raise ConfigError(
            f"{MANAGER_KEY}={manager}: {feature} needs its own manager, because its workers run sessions differently. "
            "Leave the key out. Agent loops of your own (rollout.agent.agent_loop_config_path) keep working."
        )


def _refuse_unweighted_loss(s2l: S2LConfig, cfg: DictConfig) -> None:
    if s2l.explorer is None or s2l.explorer.correction != "truncated_is":
        return
    fix = f"Set {LOSS_MODE} to one of: {', '.join(sorted(WEIGHTED_LOSSES))}; or s2l.explorer.correction=none."
    mode = setting(cfg, LOSS_MODE) or "vanilla"
    if mode not in WEIGHTED_LOSSES:
        why = OTHER_USE.get(mode, "is not known to multiply them into each token's loss")
        raise ConfigError(f"{LOSS_MODE}={mode} {why}, and s2l.explorer.correction=truncated_is writes weights. {fix}")
    if setting(cfg, "distillation.enabled"):
        raise ConfigError(
            "distillation.enabled=True adds a loss that ignores the weights of s2l.explorer.correction=truncated_is. "
            "Set distillation.enabled=False, or s2l.explorer.correction=none."
        )


def _refuse_replays(s2l: S2LConfig, cfg: DictConfig) -> None:
    for name in ("rollout", "rollout_tq", "async_rollout"):
        key = f"skip.{name}.enable"
        if setting(cfg, key):
            raise ConfigError(
                f"{key}=True replays stored rollouts, but s2l plans anew who samples each session. Set {key}=False; "
                "s2l.explorer.source=offline trains on rollouts that `s2l explore` stored."
            )
    for block in ROUTER_REPLAY if s2l.explorer else ():
        key = f"actor_rollout_ref.actor.{block}.router_replay.mode"
        if setting(cfg, key) == "R3":
            raise ConfigError(
                f"{key}=R3 makes the learner use the experts that the sampler chose, and an explorer row's sampler is "
                f"another model. Set {key}=R2 or disabled."
            )


def _refuse_unread(s2l: S2LConfig, cfg: DictConfig) -> None:
    """Files that are written too late to be measured, and a teacher's own code that its servers do not load."""
    late, code = "actor_rollout_ref.actor.checkpoint.async_save", f"{MODEL}.trust_remote_code"
    if setting(cfg, late):
        raise ConfigError(
            f"{late}=True writes weights after the step, and the sizes in a checkpoint's s2l_files.json would be of "
            f"unfinished files. Set {late}=False."
        )
    if s2l.distill is not None and not s2l.distill.in_actor and setting(cfg, code):
        raise ConfigError(
            f"s2l.distill.teacher_placement=server with {code}=True: verl's teacher servers load no code of a model's "
            "own. Set s2l.distill.teacher_placement=local."
        )


def _warnings(s2l: S2LConfig, cfg: DictConfig) -> Iterator[str]:
    scale = "actor_rollout_ref.actor.loss_scale_factor"
    if setting(cfg, AGGREGATION) == "seq-mean-token-sum-norm" and setting(cfg, scale) is None:
        yield (
            f"{AGGREGATION}=seq-mean-token-sum-norm without {scale}: verl divides by the longest response of each "
            f"micro-batch, so the loss depends on how rows are split. Set {scale}, for instance to "
            f"data.max_response_length={setting(cfg, 'data.max_response_length')}."
        )
    limit = s2l.rollout.session_timeout_s
    if limit is not None and mode_of(cfg) == "colocate_async":
        yield (
            f"s2l.rollout.session_timeout_s={limit:g} in mode colocate_async: a session that is not finished waits for "
            "the learner's update, checkpoint and validation, and this time counts. Set it above your longest step."
        )
    if setting(cfg, f"{MODEL}.trust_remote_code") and setting(cfg, f"{MODEL}.use_remove_padding"):
        yield (
            f"{MODEL}.use_remove_padding=True with trust_remote_code=True: rows are packed into one, and a model's own "
            "code may let a row attend to those before it (InternLM2's does). Set use_remove_padding=False unless "
            "yours reads position_ids or cu_seqlens."
        )
    if not s2l.any_method_on:
        return
    idle = (setting(cfg, "trainer.critic_warmup") or 0) - 1
    if idle > 0:
        yield (
            f"trainer.critic_warmup={idle + 1}: no policy learns in the first {idle} step(s), and schedules of s2l "
            "count them. Set trainer.critic_warmup=0."
        )
    reading = accuracy_settings(s2l, cfg, of_batch=True)
    custom = setting(cfg, "trainer.v1.sampler.custom_sampler.name")
    if reading and custom:  # verl's own buffer reports the groups that it drops (training/dropped_groups.py)
        yield (
            f"trainer.v1.sampler.custom_sampler.name={custom}: groups that it drops are not counted in the accuracy "
            f"of {reading[0]}, which then sees the surviving groups only."
        )
    if setting(cfg, "trainer.del_local_ckpt_after_load"):
        yield (
            "trainer.del_local_ckpt_after_load=True deletes the checkpoint's weights once they are loaded: a run that "
            "ends before its next checkpoint cannot be resumed. Set it to False."
        )


# ---- engines and adapters -----------------------------------------------------------------------------------------


def _check_engine(cfg: DictConfig) -> None:
    """verl builds an engine's settings from all keys that are there, and those of another engine are unknown to it."""
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}"
        if setting(cfg, f"{key}.strategy") == "megatron" and setting(cfg, f"{key}.fsdp_config") is not None:
            raise ConfigError(
                f"{key}.fsdp_config is set, by verl's default or by the recipe, and {key}.strategy=megatron does not "
                f"know it. Add model_engine=megatron ~{key}.fsdp_config to the command."
            )


def _check_sequence_parallel(cfg: DictConfig) -> None:
    """verl exchanges the parts of a row inside flash attention alone; any other attention sees its own part only."""
    attention = setting(cfg, f"{MODEL}.override_config.attn_implementation") or "flash_attention_2"
    for role in ("actor", "ref"):
        key = f"actor_rollout_ref.{role}"
        size = sequence_parallel_gpus(cfg, key)
        if size > 1 and not attention.startswith("flash_attention"):
            raise ConfigError(
                f"{key}: ulysses_sequence_parallel_size={size} with {MODEL}.override_config.attn_implementation="
                f"{attention}: verl exchanges keys and values in flash attention only, so each GPU would attend to its "
                f"part of a row. Set ++{MODEL}.override_config.attn_implementation=flash_attention_2, or the size to 1."
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
    if mode_of(cfg) == "separate_async" and max(plain, nested) > 0 and not setting(cfg, f"{MODEL}.lora.merge"):
        raise ConfigError(
            f"LoRA with {MODE_KEY}=separate_async: verl sends samplers on GPUs of their own the frozen weights and no "
            f"adapter, so every rollout would be the base model's. Set +{MODEL}.lora.merge=true, which sends merged "
            "weights, or use another mode."
        )
    save = "actor_rollout_ref.actor.checkpoint.save_contents"
    if strategy != "megatron" and plain > 0 and "hf_model" in (setting(cfg, save) or []):
        raise ConfigError(
            f"{save} has hf_model with {MODEL}.lora_rank={plain}: verl 0.9.1 writes base and adapter under names that "
            "no loader supports. Leave hf_model out (`s2l pipeline` cannot pass such a model on)."
        )


# ---- agent loops and media, by settings and by columns of the data ------------------------------------------------


def check_loops(names: Collection[str], s2l: S2LConfig, where: str) -> None:
    """Raise ConfigError on an agent loop of several turns where stored rollouts answer. ``names``: of agent loops.
    ``where``: the setting or column that names them."""
    if s2l.offline_explorer and "tool_agent" in names:
        raise ConfigError(
            f"{where}=tool_agent with s2l.explorer.source=offline: a stored rollout has one turn, and the loop asks "
            "for more. Set s2l.explorer.source=live, or name single_turn_agent there."
        )


def check_columns(columns: Collection[str], s2l: S2LConfig, cfg: DictConfig) -> None:
    """Raise ConfigError where the data has pictures, videos or sound and a method knows of text only, or where it says
    how a prompt is sampled. ``columns``: of the training data."""
    own = next((column for column in OWN_SAMPLING if column in columns), None)
    if own and s2l.any_method_on:
        raise ConfigError(
            f"column {own} of data.train_files: verl takes from it how a prompt is sampled, and s2l plans that: every "
            "group has actor_rollout_ref.rollout.n sessions, sampled as the settings say. Drop the column, or leave "
            "every method out."
        )
    found = [f"data.{key}={column}" for key in MEDIA if (column := setting(cfg, f"data.{key}")) in columns]
    reasons = {
        "s2l.guidance": s2l.guidance and "places text tokens behind the prompt's, and is not tried with other media",
        "s2l.explorer.source=offline": s2l.offline_explorer
        and "takes rollouts that `s2l explore` sampled from text only",
        "s2l.distill.teacher_placement=local": s2l.distill
        and s2l.distill.in_actor
        and "replaces the output layer inside the model, and is not tried with vision models",
    }
    for feature, reason in reasons.items():
        if found and reason:
            raise ConfigError(
                f"{found[0]}: the data has this column. {feature} {reason}. Drop an empty column, or leave the feature "
                "out."
            )
