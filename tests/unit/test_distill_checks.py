"""Rules of ``s2l.distill`` on the composed toy recipe, and what preflight says of the teacher."""

import pytest
from omegaconf import open_dict

from s2l_ext.errors import ConfigError, TokenizerMismatch
from s2l_ext.launch.plan_summary import build_plan, render
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.distill.rules import NO_POLICY_GRADIENT, OWN_ENGINE
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.controller_state import fingerprint
from s2l_ext.training.preflight import check_inputs

TEACHER = {"s2l__distill__teacher_path": "big"}
LIVE = {
    "s2l__explorer__model_path": "big",
    "s2l__explorer__schedule": "constant",
    "s2l__explorer__temperature": 1.0,
    "s2l__explorer__top_p": 1.0,
}


@pytest.fixture(scope="module")
def recipe(rules):
    return rules("grpo/toy")


def test_on_policy_distillation_passes_without_a_warning(recipe) -> None:
    assert recipe.check(**TEACHER) == []


def test_warm_up_on_the_teachers_rows_passes_without_a_warning(recipe) -> None:
    assert recipe.check(**TEACHER, **LIVE, s2l__distill__loss="forward_kl") == []


def test_defaults_are_the_paper() -> None:
    distill = DistillConfig()
    assert (distill.loss, distill.teacher_placement, distill.temperature, distill.correct_only) == (
        "reverse_kl",
        "local",
        1.0,
        False,
    )


def test_a_divergence_without_a_teacher_names_the_key(recipe) -> None:
    message = recipe.refused(s2l__distill__loss="reverse_kl")
    assert "s2l.distill.loss=reverse_kl" in message and "Set it to a model folder" in message


def test_hard_labels_need_no_teacher(recipe) -> None:
    assert recipe.check(**LIVE, s2l__distill__loss="sft") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("algorithm.use_kl_in_reward", True),
        ("actor_rollout_ref.actor.entropy_coeff", 0.01),
        ("algorithm.rollout_correction.rollout_is", "token"),
        ("algorithm.rollout_correction.rollout_rs", "sequence_k3"),
        ("algorithm.rollout_correction.bypass_mode", True),
        ("actor_rollout_ref.actor.clip_ratio_low", 0.1),
        ("actor_rollout_ref.actor.clip_ratio_high", 0.28),
        ("actor_rollout_ref.actor.clip_ratio_c", 10.0),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "gspo"),
        ("algorithm.adv_estimator", "rloo"),
        ("algorithm.norm_adv_by_std_in_grpo", False),
        ("critic.enable", True),
        ("distillation.enabled", True),
        ("actor_rollout_ref.actor.strategy", "fsdp"),
        ("actor_rollout_ref.actor.strategy", "megatron"),
        ("actor_rollout_ref.ref.strategy", "fsdp"),
        ("actor_rollout_ref.actor.ulysses_sequence_parallel_size", 2),
        ("actor_rollout_ref.actor.fsdp_config.ulysses_sequence_parallel_size", 2),
        ("actor_rollout_ref.ref.fsdp_config.ulysses_sequence_parallel_size", 2),
        ("actor_rollout_ref.model.use_fused_kernels", True),
    ],
)
def test_what_the_loss_would_ignore_or_break_is_refused_with_key_value_and_fix(recipe, key, value) -> None:
    message = recipe.refused(**TEACHER, **{key.replace(".", "__"): value})
    assert message.startswith(f"{key}={value}: ") and f"Set {key}=" in message


@pytest.mark.parametrize(
    ("sampling", "words"),
    [({"temperature": 0.5}, "temperature 0.5"), ({"top_p": 0.8, "top_k": 5}, "top-p 0.8, top-k 5")],
)
def test_the_students_own_rows_are_to_be_its_own_distribution(recipe, sampling, words) -> None:
    """Not for forward KL, whose average is over the teacher's rows, and not where none is the student's."""
    own = {f"actor_rollout_ref__rollout__{name}": value for name, value in sampling.items()}
    key = "actor_rollout_ref.rollout"
    warning = (
        f"{key} samples at {words}: s2l.distill.loss=reverse_kl is then no average over the student's own distribution "
        f"at s2l.distill.temperature=1 (the paper: 1, no truncation). Set {key}.temperature=1, top_p=1 and top_k=-1."
    )
    assert warning in recipe.check(**TEACHER, **own)
    others = {"s2l__explorer__model_path": "big", "s2l__explorer__schedule": "constant"}
    for silent in ({"s2l__distill__loss": "forward_kl"}, others):
        assert not any("student's own distribution" in one for one in recipe.check(**TEACHER, **own, **silent))


def test_every_rule_is_tried_above() -> None:
    tried = test_what_the_loss_would_ignore_or_break_is_refused_with_key_value_and_fix.pytestmark[0].args[1]
    assert {key for key, _ in tried} == {*NO_POLICY_GRADIENT, *OWN_ENGINE}


def test_kl_block_has_nothing_to_act_in(recipe) -> None:
    settings = {"s2l__kl__type": "constant", "actor_rollout_ref__actor__use_kl_loss": True}
    assert recipe.refused(**TEACHER, **settings).startswith("s2l.kl is a term of the policy-gradient loss")


@pytest.mark.parametrize("key", ["actor_rollout_ref.rollout.temperature", "s2l.explorer.temperature"])
def test_temperature_zero_with_a_divergence_is_refused(recipe, key) -> None:
    settings = {**TEACHER, **LIVE, "s2l__distill__loss": "forward_kl", key.replace(".", "__"): 0.0}
    assert recipe.refused(**settings).startswith(f"{key}=0 is greedy")


def test_distillation_temperature_zero_is_out_of_range(recipe) -> None:
    assert "s2l.distill.temperature=0" in recipe.refused(**TEACHER, s2l__distill__temperature=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [("jsd_beta", 0.3), ("topk", 64), ("nnodes", 2), ("n_gpus_per_node", 4), ("tensor_model_parallel_size", 2)],
)
def test_a_key_that_the_loss_does_not_read_is_refused(recipe, name, value) -> None:
    assert recipe.refused(**TEACHER, **{f"s2l__distill__{name}": value}).startswith(
        f"s2l.distill.{name}={value} would be ignored"
    )


@pytest.mark.parametrize(("name", "value"), [("chunk_size", 64), ("temperature", 2.0)])
def test_a_key_that_the_server_does_not_read_is_refused(recipe, name, value) -> None:
    server = {"s2l__distill__teacher_placement": "server", "s2l__distill__loss": "forward_kl", **LIVE}
    assert "would be ignored" in recipe.refused(**TEACHER, **server, **{f"s2l__distill__{name}": value})


def test_a_server_has_no_whole_distribution(recipe) -> None:
    message = recipe.refused(**TEACHER, s2l__distill__teacher_placement="server")
    assert "its 128 likeliest tokens" in message and "forward_kl, sampled_k1" in message


def test_lora_on_the_student_is_accepted_in_fsdps_spelling_alone(recipe) -> None:
    rank = "actor_rollout_ref__model__lora_rank"
    assert recipe.check(**TEACHER, **{rank: 8}) == []
    assert recipe.check(**TEACHER, **{rank: 8}, actor_rollout_ref__model__lora_adapter_path="adapter") == []
    nested = {"actor_rollout_ref__model__lora__rank": 8}
    assert "Set actor_rollout_ref.model.lora_rank=8" in recipe.refused(**TEACHER, **nested)
    assert "loads no adapter at rank 0" in recipe.refused(
        **TEACHER, actor_rollout_ref__model__lora_adapter_path="adapter"
    )


SERVER = {"s2l__distill__teacher_placement": "server", "s2l__distill__loss": "forward_kl"}


def test_a_server_and_correct_rows_only_do_not_go_together(recipe) -> None:
    message = recipe.refused(**TEACHER, **SERVER, s2l__distill__correct_only=True)
    assert message.startswith("s2l.distill.correct_only=True with teacher_placement=server")


def test_a_server_takes_no_micro_batch_of_padding_alone(recipe) -> None:
    sizes = {"data__train_batch_size": 24, "actor_rollout_ref__actor__ppo_mini_batch_size": 16}
    message = recipe.refused(**TEACHER, **SERVER, **sizes)
    assert message.startswith("actor_rollout_ref.actor.ppo_mini_batch_size=16 does not divide data.train_batch_size=24")


def test_a_server_scores_at_temperature_one(recipe) -> None:
    message = recipe.refused(**TEACHER, **SERVER, actor_rollout_ref__rollout__temperature=0.6)
    assert message.startswith("actor_rollout_ref.rollout.temperature=0.6: ") and "temperature=1.0." in message


@pytest.mark.slow
@pytest.mark.parametrize(("name", "value"), [("temperature", 0.6), ("top_p", 0.8), ("top_k", 20)])
def test_sampled_tokens_come_from_the_distribution_that_is_scored(recipe, name, value) -> None:
    settings = {**TEACHER, "s2l__distill__loss": "sampled_k1", f"actor_rollout_ref__rollout__{name}": value}
    assert recipe.refused(**settings).startswith(
        f"actor_rollout_ref.rollout.{name}={value}: s2l.distill.loss=sampled_k1"
    )
    assert recipe.check(**TEACHER, s2l__distill__loss="sampled_k1") == []


def test_replicas_of_the_teacher_fill_its_gpus(recipe) -> None:
    server = {
        "s2l__distill__teacher_placement": "server",
        "s2l__distill__loss": "sampled_k1",
        "s2l__distill__n_gpus_per_node": 3,
    }
    message = recipe.refused(**TEACHER, **server, s2l__distill__tensor_model_parallel_size=2)
    assert message.startswith("s2l.distill.tensor_model_parallel_size=2 does not divide the teacher's 3 GPUs")


@pytest.mark.parametrize(("name", "value"), [("baseline", "per_source"), ("correction", "truncated_is")])
def test_explorer_settings_about_advantages_are_refused(recipe, name, value) -> None:
    settings = {**TEACHER, **LIVE, "s2l__distill__loss": "forward_kl", f"s2l__explorer__{name}": value}
    settings["actor_rollout_ref__rollout__calculate_log_probs"] = True
    assert f"s2l.explorer.{name}={value} would be ignored with s2l.distill" in recipe.refused(**settings)


def test_schedules_do_not_ignore_each_others_keys(recipe) -> None:
    settings = {**TEACHER, **LIVE, "s2l__distill__loss": "forward_kl", "s2l__explorer__mix_steps": 4}
    assert "s2l.explorer.mix_steps=4 would be ignored" in recipe.refused(**settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"s2l__distill__loss": "forward_kl"}, "on the student's own rows"),
        ({**LIVE}, "no on-policy distillation"),
        ({"actor_rollout_ref__actor__ppo_mini_batch_size": 8}, "one optimizer step per batch"),
        ({"actor_rollout_ref__actor__ppo_epochs": 2}, "reads every row several times"),
    ],
)
def test_what_departs_from_the_paper_is_said(recipe, settings, words) -> None:
    (warning,) = recipe.check(**TEACHER, **settings)
    assert words in warning


def test_learning_ones_own_right_answers_is_a_method_of_its_own(recipe) -> None:
    assert recipe.check(s2l__distill__loss="sft", s2l__distill__correct_only=True) == []


def test_teacher_without_distillation_is_said_to_leave_the_learner_unseen(recipe) -> None:
    (warning,) = recipe.check(**LIVE)
    assert "never sees the learner's own rows" in warning


def test_plan_shows_the_loss(recipe) -> None:
    cfg = recipe.composed.copy()
    with open_dict(cfg):
        cfg.s2l.distill = {"teacher_path": "big", "correct_only": True}
    plan = build_plan(cfg, parse_s2l(cfg.s2l), "x", "cpu")
    assert "reverse_kl to big (placement local), on correct rows only" in render(plan) and "distill" not in plan["off"]


def test_a_checkpoint_of_another_loss_is_told_apart(recipe) -> None:
    def settings(**distill):
        cfg = recipe.composed.copy()
        with open_dict(cfg):
            cfg.s2l.distill = {"teacher_path": "somewhere/big", **distill}
        return fingerprint(parse_s2l(cfg.s2l), cfg)

    assert settings() != settings(loss="forward_kl") and settings() == settings(chunk_size=7)
    assert settings()["distill.teacher"] == "big"


# ---- models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small and a larger model, and one that says its words in another order."""
    from s2l_ext.toy.models import ModelSize, build_model
    from s2l_ext.toy.tokenizer import build_tokenizer

    root = tmp_path_factory.mktemp("models")
    for name, size in (("small", ModelSize(32, 1)), ("big", ModelSize(64, 2))):
        build_model(size, 0).save_pretrained(root / name)
        build_tokenizer().save_pretrained(root / name)
    other = build_tokenizer()
    other.add_tokens(["<another>"])
    other.save_pretrained(root / "other")
    wider = build_model(ModelSize(64, 2), 0)
    wider.resize_token_embeddings(len(other))
    wider.save_pretrained(root / "other")
    return root


def inputs(recipe, folders, student: str, teacher: str, monkeypatch) -> list[str]:
    monkeypatch.setattr("s2l_ext.training.preflight.check_data", lambda cfg: None)
    cfg = recipe.composed.copy()
    with open_dict(cfg):
        cfg.data.train_files = cfg.data.val_files = None
        cfg.actor_rollout_ref.model.path = str(folders / student)
        cfg.s2l.distill = {"teacher_path": str(folders / teacher)}
    return check_inputs(cfg, parse_s2l(cfg.s2l))


def test_a_larger_teacher_of_the_family_passes(recipe, folders, monkeypatch) -> None:
    assert inputs(recipe, folders, "small", "big", monkeypatch) == []


def test_a_smaller_teacher_is_a_warning_with_both_sizes(recipe, folders, monkeypatch) -> None:
    (warning,) = inputs(recipe, folders, "big", "small", monkeypatch)
    assert warning.startswith("the teacher is smaller than the student: s2l.distill.teacher_path=")


def test_another_tokenizer_is_refused_with_both_keys(recipe, folders, monkeypatch) -> None:
    with pytest.raises(TokenizerMismatch, match=r"s2l\.distill\.teacher_path=.*do not share a tokenizer"):
        inputs(recipe, folders, "small", "other", monkeypatch)


def test_a_missing_teacher_is_named(recipe, folders, monkeypatch) -> None:
    with pytest.raises(ConfigError, match=r"s2l\.distill\.teacher_path=.*nowhere: no such folder"):
        inputs(recipe, folders, "small", "nowhere", monkeypatch)


def test_verls_top_k_loss_is_used_with_a_warning_of_what_it_drops(recipe) -> None:
    assert recipe.check(**TEACHER, **LIVE, **SERVER, s2l__distill__topk=64) == [
        "s2l.distill.teacher_placement=server with loss=forward_kl: verl sums over the teacher's 64 likeliest "
        "tokens, without the "
        "tail, and sets a negative sum to 0 (verl#7855): where the student gives these tokens more mass than the "
        "teacher, a token has no gradient. teacher_placement=local has the whole divergence."
    ]
    sampled = {"s2l__distill__teacher_placement": "server", "s2l__distill__loss": "sampled_k1"}
    assert recipe.check(**TEACHER, **sampled) == []


def test_settings_that_change_which_rows_teach(rules) -> None:
    recipe = rules("sparse_to_dense/stages/sft_own_answers")
    key = "actor_rollout_ref__actor__loss_agg_mode"
    assert "shrinks with the accuracy" in " ".join(recipe.check(**{key: "seq-mean-token-mean"}))
    assert "shrinks" not in " ".join(recipe.check(**{key: "token-mean"}))
    assert "shrinks" not in " ".join(recipe.check(**{key: "seq-mean-token-mean"}, s2l__distill__correct_only=False))
    assert "the loss reads no reward" in " ".join(recipe.check(algorithm__filter_groups__enable=True))
    assert recipe.check(critic__enable=None) == recipe.check()
