"""Rules between ``s2l.distill``, everything that it takes the place of, its teacher, and the rows that it reads."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig

from s2l_ext.config.model_files import parameter_count
from s2l_ext.config.parse import refuse_changed
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.data.tokenizers import compare
from s2l_ext.errors import ConfigError
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.inputs import LEARNER_KEY, Inputs, check_model_path

if TYPE_CHECKING:
    from s2l_ext.methods.explorer.config import ExplorerConfig, LiveExplorer

TEACHER_KEY = "s2l.distill.teacher_path"
ROLLOUT = "actor_rollout_ref.rollout"
SAMPLING = ("temperature", "top_p", "top_k")
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
    "actor_rollout_ref.actor.clip_ratio_low": ((0.2, None), "bounds a ratio that no loss reads"),
    "actor_rollout_ref.actor.clip_ratio_high": ((0.2, None), "bounds a ratio that no loss reads"),
    "actor_rollout_ref.actor.clip_ratio_c": ((3.0, None), "bounds a ratio that no loss reads"),
    "actor_rollout_ref.actor.policy_loss.loss_mode": (("vanilla", None), "is the loss that s2l.distill replaces"),
    "algorithm.adv_estimator": (("grpo", None), "gives advantages, which no loss reads"),
    "algorithm.norm_adv_by_std_in_grpo": ((True, None), "scales advantages, which no loss reads"),
    "critic.enable": ((False, None), "trains a critic, whose values nothing reads"),
    "distillation.enabled": (
        (False, None),
        "is verl's own distillation; s2l.distill.teacher_placement=server sets it up",
    ),
}
"""Settings of verl's that a run without its policy gradient would ignore: allowed values, and what they do.
``sampled_k1`` has one of its own, with the log-ratio as advantage and without a clip."""

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
    _refuse_unused(distill, s2l)
    _check_teacher(distill)
    _require(cfg, NO_POLICY_GRADIENT, "s2l.distill has no policy gradient")
    if distill.in_actor:
        _require(cfg, OWN_ENGINE, "s2l.distill.teacher_placement=local needs another value")
    else:
        _check_servers(distill, cfg)
    _check_sampling(distill, s2l.live_explorer, cfg)
    warnings = [*_step_warnings(distill, cfg), *_row_warnings(distill, s2l.explorer)]
    warnings += _own_rows(distill, s2l.explorer, cfg)
    return warnings + (check_teacher_rows(distill, s2l.live_explorer) if s2l.live_explorer else [])


def _refuse_unused(distill: DistillConfig, s2l: S2LConfig) -> None:
    unread = [*(["jsd_beta"] if distill.loss != "jsd" else [])]
    unread += SERVER_KEYS if distill.in_actor else ["chunk_size", "temperature"]
    why = f"s2l.distill.loss={distill.loss} and teacher_placement={distill.teacher_placement}"
    refuse_changed(distill, unread, "s2l.distill", why)
    if s2l.kl is not None:
        raise ConfigError("s2l.kl is a term of the policy-gradient loss, which s2l.distill replaces. Set s2l.kl=null.")
    if s2l.explorer is not None:
        why = "s2l.distill: they act on advantages, which it does not have"
        refuse_changed(s2l.explorer, ["baseline", "correction", "is_cap"], "s2l.explorer", why)


def _check_teacher(distill: DistillConfig) -> None:
    if distill.teacher_path is None and (distill.loss != "sft" or not distill.in_actor):
        raise ConfigError(
            f"s2l.distill.loss={distill.loss} compares with a teacher, but {TEACHER_KEY} is not set. Set it to a model "
            "folder or hub id of the student's family (loss=sft alone needs none)."
        )
    if not distill.in_actor and distill.loss not in SERVER_LOSSES:
        raise ConfigError(
            f"s2l.distill.loss={distill.loss} needs the teacher's whole distribution; "
            f"s2l.distill.teacher_placement=server has its {distill.topk} likeliest tokens. Set "
            f"teacher_placement=local, or loss to one of: {', '.join(SERVER_LOSSES)}."
        )


def _check_servers(distill: DistillConfig, cfg: DictConfig) -> None:
    gpus, size = distill.nnodes * distill.n_gpus_per_node, distill.tensor_model_parallel_size
    if gpus % size:
        raise ConfigError(
            f"s2l.distill.tensor_model_parallel_size={size} does not divide the teacher's {gpus} GPUs (nnodes "
            f"{distill.nnodes} x n_gpus_per_node {distill.n_gpus_per_node}). Change one of the three."
        )
    if distill.correct_only:
        raise ConfigError(
            "s2l.distill.correct_only=True with teacher_placement=server: verl's loss fails on a micro-batch without a "
            "right row. Set teacher_placement=local, or correct_only=false."
        )
    prompts, mini = whole_number(cfg, "data.train_batch_size"), "actor_rollout_ref.actor.ppo_mini_batch_size"
    if prompts % whole_number(cfg, mini):
        raise ConfigError(
            f"{mini}={setting(cfg, mini)} does not divide data.train_batch_size={prompts}: verl pads the last "
            "mini-batch, and with teacher_placement=server its loss fails on a micro-batch of padding. Set a divisor, "
            "or teacher_placement=local."
        )
    key = f"{ROLLOUT}.temperature"
    if setting(cfg, key) != 1:
        raise ConfigError(
            f"{key}={setting(cfg, key)}: with s2l.distill.teacher_placement=server verl divides the student's logits "
            f"by it and never the teacher's, so the student would learn another distribution. Set {key}=1.0."
        )


def _require(cfg: DictConfig, rules: dict[str, tuple[tuple[Any, ...], str]], why: str) -> None:
    for key, (allowed, reason) in rules.items():
        value = setting(cfg, key)
        if value not in allowed:
            word = {"None": "null", "True": "true", "False": "false"}.get(str(allowed[0]), allowed[0])
            raise ConfigError(f"{key}={value}: {why}: {reason}. Set {key}={word}.")


def _check_sampling(distill: DistillConfig, explorer: LiveExplorer | None, cfg: DictConfig) -> None:
    """At temperature 0 a model samples one text, which says nothing about a distribution; and ``sampled_k1`` is
    unbiased for tokens drawn from the very distribution that is scored."""
    samplers = {f"{ROLLOUT}.temperature": setting(cfg, f"{ROLLOUT}.temperature")}
    if explorer is not None:
        samplers["s2l.explorer.temperature"] = explorer.temperature
    for key, value in samplers.items():
        if value == 0 and distill.loss != "sft":
            raise ConfigError(
                f"{key}=0 is greedy: its rows are no samples, so no average over them is s2l.distill.loss="
                f"{distill.loss}. Set {key}=1.0 (the paper)."
            )
    wanted = {"temperature": distill.temperature, "top_p": 1, "top_k": -1} if distill.loss == "sampled_k1" else {}
    for name, value in wanted.items():
        given = setting(cfg, f"{ROLLOUT}.{name}")
        if given != value:
            raise ConfigError(
                f"{ROLLOUT}.{name}={given}: s2l.distill.loss=sampled_k1 needs tokens drawn from the distribution that "
                f"it scores, or its gradient is biased. Set {ROLLOUT}.{name}={value:g}."
            )


def _step_warnings(distill: DistillConfig, cfg: DictConfig) -> Iterator[str]:
    mini_key, epochs_key = (f"actor_rollout_ref.actor.{name}" for name in ("ppo_mini_batch_size", "ppo_epochs"))
    prompts, mini = whole_number(cfg, "data.train_batch_size"), setting(cfg, mini_key)
    if mini != prompts:
        yield (
            f"{mini_key}={mini} with data.train_batch_size={prompts}: the paper takes one optimizer step per batch; "
            "later mini-batches are no longer on-policy."
        )
    if (setting(cfg, epochs_key) or 1) > 1:
        yield f"{epochs_key} is above 1: s2l.distill reads every row several times."
    if setting(cfg, "algorithm.filter_groups.enable"):
        yield (
            "algorithm.filter_groups.enable=True with s2l.distill: prompts whose rows are all right or all wrong are "
            "left out, though the loss reads no reward. Set it to False."
        )
    key = "actor_rollout_ref.actor.loss_agg_mode"
    mode = setting(cfg, key) or ""
    if distill.correct_only and mode.startswith("seq-mean"):
        yield (
            f"{key}={mode} with s2l.distill.correct_only=True: the mean counts wrong rows, which add nothing, so the "
            f"step shrinks with the accuracy. Set {key}=token-mean."
        )


def _row_warnings(distill: DistillConfig, explorer: ExplorerConfig | None) -> Iterator[str]:
    """Whose states a divergence is meant for, and which tokens it sees."""
    loss, own_right_answers = f"s2l.distill.loss={distill.loss}", distill.loss == "sft" and distill.correct_only
    if explorer is None and distill.loss in ("forward_kl", "sft") and not own_right_answers:
        yield (
            f"{loss} without s2l.explorer is taken on the student's own rows; the paper's warm-up takes it on the "
            "teacher's (s2l.explorer.model_path=TEACHER, schedule=constant)."
        )
    if explorer is not None and distill.loss in ("reverse_kl", "sampled_k1"):
        yield (
            f"{loss} on rows that s2l.explorer samples is no on-policy distillation: the expectation is over the "
            "student's rows."
        )
    if distill.loss == "forward_kl" and not distill.in_actor:
        yield (
            f"s2l.distill.teacher_placement=server with loss=forward_kl: verl sums over the teacher's {distill.topk} "
            "likeliest tokens, without the tail, and sets a negative sum to 0 (verl#7855): where the student gives "
            "these tokens more mass than the teacher, a token has no gradient. teacher_placement=local has the whole "
            "divergence."
        )


def _own_rows(distill: DistillConfig, explorer: ExplorerConfig | None, cfg: DictConfig) -> list[str]:
    if distill.loss != "reverse_kl" or (explorer is not None and explorer.schedule == "constant"):
        return []
    sampling = {name: setting(cfg, f"{ROLLOUT}.{name}") for name in SAMPLING}
    fix = f"Set {ROLLOUT}.temperature={distill.temperature:g}, top_p=1 and top_k=-1."
    return sampling_warnings(distill, sampling, f"{ROLLOUT} samples", fix, whose="student")


# ---- the teacher, and the rows that it is compared on ---------------------------------------------------------------


def check_teacher(inputs: Inputs) -> list[str]:
    """It scores token ids that the learner's template rendered, or that a sampler was given in that form. Raises
    ConfigError: no such model folder. Raises TokenizerMismatch: it has other tokens."""
    distill, student_path = inputs.needed.distill, inputs.cfg.actor_rollout_ref.model.path
    if distill is None or distill.teacher_path is None:
        return []
    check_model_path(TEACHER_KEY, distill.teacher_path, inputs.trust)
    warnings = compare(student_path, distill.teacher_path, LEARNER_KEY, TEACHER_KEY, inputs.trust, both_render=False)
    student, teacher = parameter_count(student_path), parameter_count(distill.teacher_path)
    if student is None or teacher is None or teacher >= student:
        return warnings
    return [
        *warnings,
        f"the teacher is smaller than the student: {TEACHER_KEY}={distill.teacher_path} has {teacher:,} parameters, "
        f"{LEARNER_KEY}={student_path} has {student:,}. Sparse-to-dense distils the larger model; are they swapped?",
    ]


def check_teacher_rows(distill: DistillConfig, explorer: LiveExplorer) -> list[str]:
    """Warnings about a live explorer's rows; stored ones are checked with their store."""
    sampling = {name: getattr(explorer, name) for name in SAMPLING}
    fix = f"Set s2l.explorer.temperature={distill.temperature:g}, top_p=1 and top_k=-1."
    warnings = sampling_warnings(distill, sampling, "s2l.explorer samples", fix)
    if distill.loss != "sft" and distill.teacher_path not in (None, explorer.model_path):
        warnings.append(
            f"s2l.explorer.model_path={explorer.model_path} is not s2l.distill.teacher_path={distill.teacher_path}: "
            f"s2l.distill.loss={distill.loss} compares with one model on rows that another sampled. Set both alike."
        )
    return warnings


def sampling_warnings(
    distill: DistillConfig, sampling: Mapping[str, Any], who: str, fix: str, whose: str = "teacher"
) -> list[str]:
    """Whether rows of ``sampling`` (``temperature``, ``top_p``, ``top_k``) are samples of what the loss is an average
    over, ``whose`` distribution. ``who``: begins the sentence (``s2l.explorer samples``). ``fix``: ends it."""
    temperature, top_p, top_k = sampling["temperature"], sampling.get("top_p", 1.0), sampling.get("top_k", 0)
    found = [f"temperature {temperature:g}"] if temperature != distill.temperature else []
    found += [f"top-p {top_p:g}"] if top_p < 1 else []
    found += [f"top-k {top_k}"] if top_k > 0 else []
    if distill.loss == "sft" or not found:
        return []
    return [
        f"{who} at {', '.join(found)}: s2l.distill.loss={distill.loss} is then no average over the {whose}'s own "
        f"distribution at s2l.distill.temperature={distill.temperature:g} (the paper: 1, no truncation). {fix}"
    ]


def stored_row_warnings(distill: DistillConfig, fingerprint: Mapping[str, Any], place: str) -> list[str]:
    """The same of a store of rollouts, by the fingerprint that ``s2l explore`` gave it."""
    fix = f"Sample again with `s2l explore --temperature {distill.temperature:g} --top-p 1 --top-k 0`."
    warnings = sampling_warnings(distill, fingerprint["sampling"], f"{place} was sampled", fix)
    sampler, teacher = str(fingerprint.get("model_name")), distill.teacher_path
    names = {name.rstrip("/").rpartition("/")[2] for name in (sampler, teacher or sampler)}  # a store keeps no paths
    if distill.loss != "sft" and len(names) > 1:
        warnings.append(
            f"{place} was sampled by {sampler}, s2l.distill.teacher_path={teacher} is another name: s2l.distill.loss="
            f"{distill.loss} compares with one model on rows that another sampled. Sample again with the teacher."
        )
    return warnings
