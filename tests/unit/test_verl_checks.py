"""Settings of verl's that a feature would override or that would switch it off: every refusal in full."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import re
from pathlib import Path

import pytest

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.platforms import accelerator_present
from s2l_ext.training.preflight import _check_cpus
from s2l_ext.training.verl_command import UNFED_ESTIMATORS
from s2l_ext.training.verl_rules import OTHER_USE, OWN_SAMPLING, WEIGHTED_LOSSES, check_columns

ACTOR = "actor_rollout_ref__actor"
MANAGER = {"actor_rollout_ref__rollout__agent__agent_loop_manager_class": "my.Manager"}
LOSSES = "cispo, clip_cov, dppo_kl, dppo_tv, dro, gpg, gspo, kl_cov, sapo, vanilla"
WEIGHTED = {"s2l__explorer__correction": "truncated_is"}


@pytest.mark.parametrize(
    ("recipe", "feature"), [("s2l_po/toy", "s2l.explorer"), ("g2rpo_a/toy", "s2l.guidance")], ids=["explorer", "guided"]
)
def test_ones_own_manager_is_not_replaced_silently(rules, recipe, feature) -> None:
    assert rules(recipe).refused(**MANAGER) == (
        f"actor_rollout_ref.rollout.agent.agent_loop_manager_class=my.Manager: {feature} needs its own manager, "
        "because its workers run sessions differently. Leave the key out. Agent loops of your own "
        "(rollout.agent.agent_loop_config_path) keep working."
    )


def test_ones_own_manager_has_no_time_limit(rules) -> None:
    recipe = rules("grpo/toy")
    assert recipe.check(**MANAGER) == []
    assert ": s2l.rollout.session_timeout_s needs its own manager, " in recipe.refused(
        **MANAGER, s2l__rollout__session_timeout_s=60.0
    )


@pytest.mark.slow
def test_ones_own_manager_stays_where_all_sessions_are_alike(rules) -> None:
    assert rules("expo/toy").check(**MANAGER) == []


@pytest.mark.parametrize(
    ("mode", "why"),
    [
        ("bypass_mode", "computes its own weights and ignores these"),
        ("geo_mean", "takes one weight per sequence, so no token has its own"),
        ("mine", "is not known to multiply them into each token's loss"),
    ],
)
def test_weights_need_a_loss_that_multiplies_them_in(rules, mode, why) -> None:
    settings = {f"{ACTOR}__policy_loss__loss_mode": mode}
    assert rules("s2l_po/toy").refused(**WEIGHTED, **settings) == (
        f"actor_rollout_ref.actor.policy_loss.loss_mode={mode} {why}, and s2l.explorer.correction=truncated_is writes "
        f"weights. Set actor_rollout_ref.actor.policy_loss.loss_mode to one of: {LOSSES}; or "
        "s2l.explorer.correction=none."
    )
    assert rules("s2l_po/toy").check(**settings) == []


@pytest.mark.slow
@pytest.mark.parametrize("mode", sorted(WEIGHTED_LOSSES))
def test_losses_that_multiply_them_in_pass(rules, mode) -> None:
    assert rules("s2l_po/toy").check(**WEIGHTED, **{f"{ACTOR}__policy_loss__loss_mode": mode}) == []


def test_every_policy_loss_of_verl_is_on_one_of_both_lists() -> None:
    """The words are verl's source: a new loss must be looked at before it is let pass."""
    spec = importlib.util.find_spec("verl")
    source = Path(spec.submodule_search_locations[0], "trainer", "ppo", "core_algos.py").read_text()
    assert set(re.findall(r'@register_policy_loss\("(\w+)"\)', source)) == WEIGHTED_LOSSES | set(OTHER_USE)


def test_verls_own_distillation_ignores_the_weights(rules) -> None:
    assert rules("s2l_po/toy").refused(**WEIGHTED, distillation__enabled=True) == (
        "distillation.enabled=True adds a loss that ignores the weights of s2l.explorer.correction=truncated_is. Set "
        "distillation.enabled=False, or s2l.explorer.correction=none."
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rollout", "rollout_tq", "async_rollout"])
def test_replayed_rollouts_follow_another_plan(rules, name) -> None:
    assert rules("s2l_po/toy").refused(**{f"skip__{name}__enable": True}) == (
        f"skip.{name}.enable=True replays stored rollouts, but s2l plans anew who samples each session. Set "
        f"skip.{name}.enable=False; s2l.explorer.source=offline trains on rollouts that `s2l explore` stored."
    )
    assert rules("grpo/toy").check(**{f"skip__{name}__enable": True}) == []


@pytest.mark.parametrize("block", ["megatron", "veomni"])
def test_an_explorers_experts_are_not_the_learners(rules, block) -> None:
    key = f"{ACTOR}__{block}__router_replay__mode"
    dotted = key.replace("__", ".")
    assert rules("s2l_po/toy").refused(**{key: "R3"}) == (
        f"{dotted}=R3 makes the learner use the experts that the sampler chose, and an explorer row's sampler is "
        f"another model. Set {dotted}=R2 or disabled."
    )
    assert rules("s2l_po/toy").check(**{key: "R2"}) == rules("g2rpo_a/toy").check(**{key: "R3"}) == []


def test_a_limit_of_sessions_that_counts_the_update_is_said(rules) -> None:
    limit = {"s2l__rollout__session_timeout_s": 600.0}
    assert rules("grpo/toy").check(**limit) == []
    (warning,) = rules("grpo/toy").check(**limit, trainer__v1__trainer_mode="colocate_async")
    assert warning.startswith("s2l.rollout.session_timeout_s=600 in mode colocate_async: a session that is not")


def test_files_that_are_written_later_have_no_size_yet(rules) -> None:
    key = "actor_rollout_ref.actor.checkpoint.async_save"
    assert rules("s2l_po/toy").refused(**{key.replace(".", "__"): True}) == (
        f"{key}=True writes weights after the step, and the sizes in a checkpoint's s2l_files.json would be of "
        f"unfinished files. Set {key}=False."
    )


@pytest.mark.parametrize("recipe", ["grpo/toy", "s2l_po/toy"])
def test_a_sum_over_tokens_without_a_fixed_divisor_depends_on_the_micro_batch(rules, recipe) -> None:
    mode = {f"{ACTOR}__loss_agg_mode": "seq-mean-token-sum-norm", "data__max_response_length": 32}
    assert rules(recipe).check(**mode) == [
        "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm without "
        "actor_rollout_ref.actor.loss_scale_factor: verl divides by the longest response of each micro-batch, so the "
        "loss depends on how rows are split. Set actor_rollout_ref.actor.loss_scale_factor, for instance to "
        "data.max_response_length=32."
    ]
    assert rules(recipe).check(**mode, **{f"{ACTOR}__loss_scale_factor": 32}) == []


def test_steps_without_an_update_use_up_the_schedule(rules) -> None:
    assert rules("s2l_po/toy").check(trainer__critic_warmup=5) == [
        "trainer.critic_warmup=5: no policy learns in the first 4 step(s), and schedules of s2l count them. Set "
        "trainer.critic_warmup=0."
    ]
    assert rules("s2l_po/toy").check(trainer__critic_warmup=1) == []  # verl updates from step 1 on


def test_groups_that_a_users_buffer_drops_are_not_counted(rules) -> None:
    sampler = {f"trainer__v1__sampler__custom_sampler__{key}": "Mine" for key in ("path", "name")}
    assert rules("s2l_po/toy").check(**sampler) == []
    assert rules("g2rpo_a/toy").check(**sampler) == [
        "trainer.v1.sampler.custom_sampler.name=Mine: groups that it drops are not counted in the accuracy of "
        "s2l.guidance.length.type=adaptive, which then sees the surviving groups only."
    ]


def test_a_checkpoint_that_is_deleted_when_it_is_loaded(rules) -> None:
    assert rules("s2l_po/toy").check(trainer__del_local_ckpt_after_load=True) == [
        "trainer.del_local_ckpt_after_load=True deletes the checkpoint's weights once they are loaded: a run that ends "
        "before its next checkpoint cannot be resumed. Set it to False."
    ]


IN_REWARD = {"algorithm__use_kl_in_reward": True}


def test_a_kl_in_the_reward_needs_the_learners_own_tokens(rules) -> None:
    assert rules("s2l_po/toy").refused(**IN_REWARD).startswith("algorithm.use_kl_in_reward=True with s2l.explorer: ")
    (warning,) = rules("g2rpo_a/toy").check(**IN_REWARD)
    assert warning.startswith("algorithm.use_kl_in_reward=True with s2l.guidance: ") and "gain advantage" in warning
    assert rules("g2rpo_a/toy").check(**IN_REWARD, s2l__guidance__loss_on_guidance=True) == []
    assert rules("grpo/toy").check(**IN_REWARD) == []


def test_a_penalty_on_length_counts_guidance(rules) -> None:
    overlong = {
        "reward__reward_manager__name": "dapo",
        "reward__reward_kwargs": {"overlong_buffer_cfg": {"enable": True}},
    }
    assert "lose reward by the guidance's length" in rules("g2rpo_a/toy").check(**overlong)[0]
    assert rules("g2rpo_a/toy").check(**(overlong | {"reward__reward_manager__name": "naive"})) == []


@pytest.mark.parametrize("kind", ["kl", "k1"])
def test_a_kl_without_a_gradient_is_refused_beside_its_coefficient(rules, kind) -> None:
    key = f"{ACTOR}__kl_loss_type"
    assert f"kl_loss_type={kind}: its gradient is 0 on average" in rules("expo/toy").refused(**{key: kind})
    for other in (f"{kind}+", "k2", "mse", "k3", "low_var_kl"):
        assert rules("expo/toy").check(**{key: other}) == []
    assert "is no estimate of a KL" in rules("expo/toy").check(**{key: "abs"})[0]


@pytest.mark.parametrize("name", sorted(UNFED_ESTIMATORS))
def test_estimators_without_their_columns_are_refused(rules, name) -> None:
    assert f"adv_estimator={name} reads columns" in rules("grpo/toy").refused(algorithm__adv_estimator=name)


def test_pass_at_k_advantages_need_two_rows_of_each_source(rules) -> None:
    passk = {"algorithm__adv_estimator": "grpo_passk"}
    assert rules("s2l_po/toy").check(**passk) == []
    assert "s2l.explorer.baseline=per_source" in rules("s2l_po/toy").refused(
        s2l__explorer__baseline="per_source", **passk
    )


CORRECTION = "algorithm__rollout_correction__"


@pytest.mark.parametrize("name", ["rollout_is", "rollout_rs"])
def test_a_correction_that_would_do_nothing_is_refused(rules, name) -> None:
    unrecorded = {"actor_rollout_ref__rollout__calculate_log_probs": False}
    bypass, asked = {f"{CORRECTION}bypass_mode": True}, {f"{CORRECTION}{name}": "token"}
    assert f"rollout_correction.{name} reads the sampler's log-probs" in rules("grpo/toy").refused(
        **asked, **unrecorded
    )
    assert "rollout_correction.bypass_mode reads" in rules("grpo/toy").refused(**bypass, **unrecorded)
    assert f"{name} with algorithm.rollout_correction.bypass_mode=True would be" in rules("grpo/toy").refused(
        **asked, **bypass
    )
    for fine in (asked, bypass, unrecorded):
        assert rules("grpo/toy").check(**fine) == []


@pytest.mark.parametrize("name", ["path", "name"])
def test_half_a_sampler_is_refused(rules, name) -> None:
    given = {f"trainer__v1__sampler__custom_sampler__{name}": "Mine"}
    assert "Set both, or neither" in rules("grpo/toy").refused(**given)


@pytest.mark.parametrize("column", OWN_SAMPLING)
def test_data_does_not_say_how_its_prompts_are_sampled_where_a_method_plans_it(composed_once, column) -> None:
    for recipe, fails in (("grpo/toy", False), ("expo/toy", True), ("s2l_po/toy", True)):
        cfg = composed_once(recipe, [])
        with pytest.raises(ConfigError, match=f"column {column}") if fails else contextlib.nullcontext():
            check_columns([column, "prompt"], parse_s2l(cfg.s2l), cfg)


@pytest.mark.parametrize("role", ["actor", "ref"])
def test_parts_of_a_row_are_exchanged_in_flash_attention_alone(rules, role) -> None:
    key = f"actor_rollout_ref__{role}__fsdp_config__ulysses_sequence_parallel_size"
    attention = "actor_rollout_ref__model__override_config__attn_implementation"
    deprecated = key.replace("fsdp_config__", "")
    assert f"{role}: ulysses" in rules("grpo/qwen3_8b").refused(**{deprecated: 4})
    eight = {key: 2, f"{ACTOR}__ppo_micro_batch_size_per_gpu": 1}
    message = rules("grpo/qwen3_8b").refused(**eight)
    assert f"{role}: ulysses_sequence_parallel_size=2" in message and "attn_implementation=sdpa" in message
    assert rules("grpo/qwen3_8b").check(**eight, **{attention: "flash_attention_2"}) == []
    assert rules("grpo/qwen3_8b").check(**eight, **{attention: None}) == []  # verl's default


def test_packed_rows_need_a_model_that_separates_them(rules) -> None:
    own = "actor_rollout_ref__model__trust_remote_code"
    assert "may let a row attend to those before it" in rules("grpo/qwen3_8b").check(**{own: True})[0]
    assert rules("grpo/internlm2.5_7b").check() == []


def test_nccl_between_pools_needs_cupy(rules, monkeypatch) -> None:
    separate = {
        "trainer__v1__trainer_mode": "separate_async",
        "trainer__v1__separate_async__parameter_sync_step": 1,
        f"{ACTOR}__ppo_mini_batch_size": 1024,
        "actor_rollout_ref__rollout__nnodes": 1,
        "actor_rollout_ref__rollout__n_gpus_per_node": 8,
        "actor_rollout_ref__rollout__checkpoint_engine__backend": "nccl",
    }
    assert rules("grpo/qwen3_8b").check(**separate) is not None  # elsewhere, perhaps
    monkeypatch.setattr("s2l_ext.training.rules.accelerator_present", lambda: True)
    assert "needs the package cupy" in rules("grpo/qwen3_8b").refused(**separate)


def test_a_look_for_accelerators_does_not_start_cuda(monkeypatch) -> None:
    monkeypatch.delenv("PYTORCH_NVML_BASED_CUDA_CHECK", raising=False)
    accelerator_present()
    assert os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] == "1"


def test_cpus_that_the_queue_would_wait_for_without_a_word(composed_once) -> None:
    """8 units of storage, 1 controller and 3 for each of 8 GPUs."""
    cfg = composed_once("grpo/qwen3_8b", ["+ray_kwargs.ray_init.num_cpus=32", "+ray_kwargs.ray_init.num_gpus=8"])
    with pytest.raises(ResourceError, match=r"needs 33 CPUs at least: 8 for .*, 24 for the learner\. Ray has 32\."):
        _check_cpus(cfg)
    cfg.ray_kwargs.ray_init.num_cpus = 33
    _check_cpus(cfg)
