"""Rules between ``s2l.distill`` and everything that it takes the place of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from s2l_ext.config.unused import refuse_changed
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.registry import S2LConfig

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.config import ExplorerConfig, LiveExplorer

ROLLOUT = "actor_rollout_ref.rollout"
SERVER_KEYS = ("topk", "nnodes", "n_gpus_per_node", "tensor_model_parallel_size")
SERVER_LOSSES = ("forward_kl", "sampled_k1")
NO_POLICY_GRADIENT: dict[str, tuple[tuple[Any, ...], str]] = {
    "actor_rollout_ref.actor.use_kl_loss": ((False, None), "adds a KL term to the policy gradient"),
    "algorithm.use_kl_in_reward": ((False, None), "subtracts a KL from rewards, which no loss reads"),
    "actor_rollout_ref.actor.entropy_coeff": ((0, None), "adds an entropy term to the policy gradient"),
    "algorithm.rollout_correction.rollout_is": ((None,), "weights the policy gradient"),
    "algorithm.rollout_correction.rollout_rs": ((None,), "rejects rows by their distance from the policy"),
    "algorithm.rollout_correction.bypass_mode": (
        (False, None),
        "takes old log-probs from the sampler; no loss reads them",
    ),
    "actor_rollout_ref.actor.clip_ratio_high": ((0.2, None), "bounds a ratio that no loss reads"),
    "algorithm.norm_adv_by_std_in_grpo": ((True, None), "scales advantages, which no loss reads"),
    "critic.enable": ((False,), "trains a critic, whose values nothing reads"),
    "distillation.enabled": (
        (False, None),
        "is verl's own distillation; s2l.distill.teacher_placement=server sets it up",
    ),
}
"""Settings of verl's that a run without a policy gradient would ignore: allowed values, and what they do."""

OWN_ENGINE: dict[str, tuple[tuple[Any, ...], str]] = {
    "actor_rollout_ref.actor.strategy": (
        ("fsdp2",),
        "the output layer's weight must be whole inside the forward pass (not so with Megatron and FSDP1; "
        "teacher_placement=server does not need it)",
    ),
    "actor_rollout_ref.ref.strategy": (("fsdp2",), "the teacher is built from the reference's engine settings"),
    "actor_rollout_ref.actor.ulysses_sequence_parallel_size": ((1, None), "a rank must see whole sequences"),
    "actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size": (
        (1, None),
        "a rank must see whole sequences",
    ),
    "actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size": ((1, None), "the teacher sees whole sequences"),
    "actor_rollout_ref.model.use_fused_kernels": (
        (False, None),
        "they replace the output layer that the loss replaces too",
    ),
}
"""What ``teacher_placement: local`` needs of the actor, and why."""


def check_distill(distill: DistillConfig, s2l: S2LConfig, cfg: DictConfig) -> list[str]:
    """Raise ConfigError on the impossible, return warnings."""
    _refuse_unused(distill)
    _check_teacher(distill)
    _check_servers(distill)
    if s2l.kl is not None:
        raise ConfigError("s2l.kl is a term of the policy-gradient loss, which s2l.distill replaces. Set s2l.kl=null.")
    _require(cfg, NO_POLICY_GRADIENT, "s2l.distill has no policy gradient")
    if distill.in_actor:
        _require(cfg, OWN_ENGINE, "s2l.distill.teacher_placement=local needs another value")
    else:
        _check_server_rows(distill, cfg)
    _check_temperatures(distill, s2l.live_explorer, cfg)
    if distill.loss == "sampled_k1":
        _check_sampled(distill, cfg)
    if s2l.explorer is not None:
        why = "s2l.distill: they act on advantages, which it does not have"
        refuse_changed(s2l.explorer, ["baseline", "correction", "is_cap"], "s2l.explorer", why)
    return [*_step_warnings(cfg), *_state_warnings(distill, s2l.explorer), *_clamp_warnings(distill)]


def _refuse_unused(distill: DistillConfig) -> None:
    unread = [*(["jsd_beta"] if distill.loss != "jsd" else [])]
    unread += SERVER_KEYS if distill.in_actor else ["chunk_size", "temperature"]
    why = f"s2l.distill.loss={distill.loss} and teacher_placement={distill.teacher_placement}"
    refuse_changed(distill, unread, "s2l.distill", why)


def _check_teacher(distill: DistillConfig) -> None:
    if distill.teacher_path is None and (distill.loss != "sft" or not distill.in_actor):
        raise ConfigError(
            f"s2l.distill.loss={distill.loss} compares with a teacher, but s2l.distill.teacher_path is not set. "
            "Set it to a model folder or hub id of the student's family (loss=sft alone needs none)."
        )
    if not distill.in_actor and distill.loss not in SERVER_LOSSES:
        raise ConfigError(
            f"s2l.distill.loss={distill.loss} needs the teacher's whole distribution; "
            "s2l.distill.teacher_placement=server has "
            f"its {distill.topk} likeliest tokens. Set teacher_placement=local, or loss to one of: "
            f"{', '.join(SERVER_LOSSES)}."
        )


def _check_servers(distill: DistillConfig) -> None:
    gpus, size = distill.nnodes * distill.n_gpus_per_node, distill.tensor_model_parallel_size
    if gpus % size:
        raise ConfigError(
            f"s2l.distill.tensor_model_parallel_size={size} does not divide the teacher's {gpus} GPUs (nnodes "
            f"{distill.nnodes} x n_gpus_per_node {distill.n_gpus_per_node}). Change one of the three."
        )


def _check_server_rows(distill: DistillConfig, cfg: DictConfig) -> None:
    if distill.correct_only:
        raise ConfigError(
            "s2l.distill.correct_only=True with teacher_placement=server: verl's loss fails on a micro-batch without "
            "a right row. "
            "Set teacher_placement=local, or correct_only=false."
        )
    key = f"{ROLLOUT}.temperature"
    if setting(cfg, key) != 1:
        raise ConfigError(
            f"{key}={setting(cfg, key)}: with s2l.distill.teacher_placement=server verl divides the student's logits "
            "by it and "
            f"never the teacher's, so the student would learn another distribution. Set {key}=1.0."
        )


def _check_sampled(distill: DistillConfig, cfg: DictConfig) -> None:
    """The estimator is unbiased for tokens drawn from the very distribution that is scored."""
    wanted = {"temperature": distill.temperature, "top_p": 1, "top_k": -1}
    for name, value in wanted.items():
        if setting(cfg, f"{ROLLOUT}.{name}") != value:
            raise ConfigError(
                f"{ROLLOUT}.{name}={setting(cfg, f'{ROLLOUT}.{name}')}: s2l.distill.loss=sampled_k1 needs tokens drawn "
                f"from the distribution that it scores, or its gradient is biased. Set {ROLLOUT}.{name}={value:g}."
            )


def _require(cfg: DictConfig, rules: dict[str, tuple[tuple[Any, ...], str]], why: str) -> None:
    for key, (allowed, reason) in rules.items():
        value = setting(cfg, key)
        if value not in allowed:
            raise ConfigError(f"{key}={value}: {why}: {reason}. Set {key}={_word(allowed[0])}.")


def _word(value: Any) -> str:
    return {"None": "null", "True": "true", "False": "false"}.get(str(value), str(value))


def _check_temperatures(distill: DistillConfig, explorer: LiveExplorer | None, cfg: DictConfig) -> None:
    """At temperature 0 a model samples one text, which says nothing about a distribution."""
    if distill.loss == "sft":
        return
    samplers = {"actor_rollout_ref.rollout.temperature": setting(cfg, "actor_rollout_ref.rollout.temperature")}
    if explorer is not None:
        samplers["s2l.explorer.temperature"] = explorer.temperature
    for key, value in samplers.items():
        if value == 0:
            raise ConfigError(
                f"{key}=0 is greedy: its rows are no samples, so no average over them is s2l.distill.loss="
                f"{distill.loss}. Set {key}=1.0 (the paper)."
            )


def _step_warnings(cfg: DictConfig) -> list[str]:
    warnings = []
    prompts, mini = (
        whole_number(cfg, "data.train_batch_size"),
        setting(cfg, "actor_rollout_ref.actor.ppo_mini_batch_size"),
    )
    if mini != prompts:
        warnings.append(
            f"actor_rollout_ref.actor.ppo_mini_batch_size={mini} with data.train_batch_size={prompts}: the paper takes "
            "one optimizer step per batch; later mini-batches are no longer on-policy."
        )
    if (setting(cfg, "actor_rollout_ref.actor.ppo_epochs") or 1) > 1:
        warnings.append("actor_rollout_ref.actor.ppo_epochs is above 1: s2l.distill reads every row several times.")
    return warnings


def _clamp_warnings(distill: DistillConfig) -> list[str]:
    if distill.in_actor or distill.loss != "forward_kl":
        return []
    return [
        f"s2l.distill.teacher_placement=server with loss=forward_kl: verl sums over the teacher's {distill.topk} "
        "likeliest "
        "tokens, without the tail, and sets a negative sum to 0 (verl#7855): where the student gives these tokens "
        "more mass than the teacher, a token has no gradient. teacher_placement=local has the whole divergence."
    ]


def _state_warnings(distill: DistillConfig, explorer: ExplorerConfig | None) -> list[str]:
    """Whose states a divergence is meant for."""
    own_right_answers = distill.loss == "sft" and distill.correct_only
    if explorer is None and distill.loss in ("forward_kl", "sft") and not own_right_answers:
        return [
            f"s2l.distill.loss={distill.loss} without s2l.explorer is taken on the student's own rows; the paper's "
            "warm-up takes it on the teacher's (s2l.explorer.model_path=TEACHER, schedule=constant)."
        ]
    if explorer is not None and distill.loss in ("reverse_kl", "sampled_k1"):
        return [
            f"s2l.distill.loss={distill.loss} on rows that s2l.explorer samples is no on-policy distillation: the "
            "expectation is over the student's rows."
        ]
    return []
