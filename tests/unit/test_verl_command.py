"""Settings that users carry over from another verl command, and what became of them in verl 0.9.1."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError
from s2l_ext.launch.verl_names import check_names

ACTOR, ROLLOUT = "actor_rollout_ref__actor", "actor_rollout_ref__rollout"
SHARDS = {"trainer__save_freq": 2}


@pytest.mark.parametrize("recipe", ["grpo/toy", "s2l_po/toy"])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"custom_reward_function__path": "mine.py"},
            "custom_reward_function.path=mine.py would be ignored: verl 0.9.1 reads rewards from the block `reward`. "
            "Set reward.custom_reward_function.path.",
        ),
        ({"reward_model__reward_manager": "dapo"}, "Set reward.reward_manager.name."),
        ({"reward_model__enable": True}, "Set reward.reward_model.enable."),
        (
            {"reward_model__reward_kwargs__overlong_buffer_cfg__enable": True},
            "Set reward.reward_kwargs.overlong_buffer_cfg.enable.",
        ),
        ({"sandbox_fusion__url": "http://a"}, "Set reward.sandbox_fusion.url."),
        ({f"{ACTOR}__clip_ratio": 0.1}, "clip_ratio=0.1 would be ignored: verl clips at clip_ratio_low=0.2 and"),
        ({f"{ROLLOUT}__temperature": 0}, "temperature=0: all rows of a group would be the same"),
        (
            {f"{ROLLOUT}__val_kwargs__n": 8, f"{ROLLOUT}__val_kwargs__temperature": 0},
            "val_kwargs.n=8 with val_kwargs.temperature=0: the 8 responses to a prompt would be the same",
        ),
        (
            SHARDS | {f"{ACTOR}__checkpoint__save_contents": ["hf_model"]},
            "save_contents=['hf_model'] has no model: a resumed run would count its steps on",
        ),
        (SHARDS | {f"{ACTOR}__checkpoint__load_contents": ["optimizer"]}, "load_contents=['optimizer'] has no model"),
        ({"trainer__resume_mode": "never"}, "trainer.resume_mode=never: verl knows auto, disable, resume_path."),
        (
            {"trainer__resume_mode": "resume_path", "trainer__resume_from_path": "/a/actor"},
            "trainer.resume_from_path=/a/actor names no checkpoint. Give the folder .../global_step_N of a run.",
        ),
        *(
            ({"trainer__resume_mode": "resume_path", "trainer__resume_from_path": f"/a/global_step_5{end}"}, "names no")
            for end in ("/", "/actor", "b")
        ),
        ({"trainer__total_training_steps": -1}, "trainer.total_training_steps=-1: the run would end without a step."),
        (
            {"trainer__total_training_steps": None, "trainer__total_epochs": 0},
            "trainer.total_epochs=0: the run would end without a step.",
        ),
        (
            {"algorithm__filter_groups__enable": True, "algorithm__filter_groups__metric": "seq_reward"},
            "algorithm.filter_groups.metric=seq_reward is of earlier versions",
        ),
        ({f"{ACTOR}__optim__lr_scheduler_type": "linear"}, "=linear: verl's FSDP engines know constant and cosine."),
        ({"data__gen_batch_size": 64}, "data.gen_batch_size=64 does not divide data.train_batch_size=16"),
        ({f"{ROLLOUT}__tensor_model_parallel_size": 2}, "Engines of 2 GPUs do not divide the 1 that sample"),
        ({f"{ACTOR}__ulysses_sequence_parallel_size": 2}, "size=2 does not divide the learner's 1 GPUs"),
        ({f"{ACTOR}__fsdp_config__fsdp_size": 2}, "fsdp_size=2 does not divide the learner's 1 GPUs"),
    ],
)
def test_what_would_be_ignored_or_fail_late_is_refused(rules, recipe: str, settings: dict, message: str) -> None:
    assert message in rules(recipe).refused(**settings)


def test_seven_gpus_take_no_engine_of_two(rules) -> None:
    """The README's layout: of eight GPUs one is the explorer's."""
    seven = {"trainer__n_gpus_per_node": 7, "data__train_batch_size": 224, f"{ACTOR}__ppo_mini_batch_size": 56}
    refused = rules("s2l_po/qwen3_1.7b_to_8b").refused(**seven, **{f"{ROLLOUT}__tensor_model_parallel_size": 2})
    assert refused.startswith("Engines of 2 GPUs do not divide the 7 that sample")


def test_servers_on_the_learners_gpus_have_to_fit_too_where_others_sample(rules) -> None:
    key = {"trainer__v1__trainer_mode": "separate_async", "trainer__n_gpus_per_node": 5, "data__train_batch_size": 320}
    sizes = {f"{ACTOR}__ppo_mini_batch_size": 80, f"{ROLLOUT}__nnodes": 1, f"{ROLLOUT}__n_gpus_per_node": 2}
    sizes |= {f"{ROLLOUT}__tensor_model_parallel_size": 2, f"{ROLLOUT}__checkpoint_engine__backend": "nccl"}
    refused = rules("grpo/qwen3_8b").refused(**key, **sizes)
    assert refused.startswith("Engines of 2 GPUs do not divide the 5 that sample")
    rules("grpo/qwen3_8b").check(**key, **sizes, actor_rollout_ref__hybrid_engine=False)


@pytest.mark.parametrize(
    "settings",
    [
        {f"{ACTOR}__clip_ratio": 0.1, f"{ACTOR}__clip_ratio_low": None, f"{ACTOR}__clip_ratio_high": None},
        {f"{ACTOR}__clip_ratio": 0.1, f"{ACTOR}__policy_loss__loss_mode": "dppo_tv"},
        {f"{ACTOR}__clip_ratio_low": 0.1, f"{ACTOR}__clip_ratio_high": 0.3},
        {"data__gen_batch_size": 8},
        {"trainer__total_training_steps": None, "trainer__total_epochs": 1},
        {"trainer__save_freq": -1, f"{ACTOR}__checkpoint__save_contents": ["hf_model"]},
        {f"{ACTOR}__optim__clip_grad": 0.1},
    ],
)
def test_what_verl_reads_passes_without_a_word(rules, settings: dict) -> None:
    assert rules("grpo/toy").check(**settings) == []


@pytest.mark.parametrize("recipe", ["grpo/toy", "s2l_po/toy"])
@pytest.mark.parametrize(
    ("settings", "warning"),
    [
        (
            {f"{ACTOR}__grad_clip": 0.1},
            "actor_rollout_ref.actor.grad_clip=0.1 has no effect: verl 0.9.1 clips gradients at "
            "actor_rollout_ref.actor.optim.clip_grad=1.0. Set that key.",
        ),
        (
            {f"{ROLLOUT}__val_kwargs__do_sample": False, f"{ROLLOUT}__val_kwargs__temperature": 0.7},
            "actor_rollout_ref.rollout.val_kwargs.do_sample=False has no effect: verl 0.9.1 reads "
            "actor_rollout_ref.rollout.val_kwargs.temperature=0.7 alone, so validation samples.",
        ),
        (
            SHARDS | {f"{ACTOR}__checkpoint__save_contents": ["model"]},
            "actor_rollout_ref.actor.checkpoint.save_contents=['model'] has no optimizer: a resumed run starts with a "
            "new one and goes on differently.",
        ),
        (
            SHARDS | {f"{ACTOR}__checkpoint__save_contents": ["model", "optimizer"]},
            "actor_rollout_ref.actor.checkpoint.save_contents=['model', 'optimizer'] has no extra: a resumed run "
            "starts its learning-rate schedule and random numbers anew and goes on differently.",
        ),
        (
            SHARDS | {f"{ACTOR}__checkpoint__load_contents": ["model", "extra"]},
            "actor_rollout_ref.actor.checkpoint.load_contents=['model', 'extra'] has no optimizer: a resumed run "
            "starts with a new one and goes on differently.",
        ),
        (
            {f"{ROLLOUT}__max_model_len": 127},
            "actor_rollout_ref.rollout.max_model_len=127 is below data.max_prompt_length + data.max_response_length = "
            "128: verl ends a response where its row is full, and says nothing. Lower one of these, or raise it if the "
            "model has the positions.",
        ),
    ],
)
def test_what_changes_less_than_asked_is_said(rules, recipe: str, settings: dict, warning: str) -> None:
    assert warning in rules(recipe).check(**settings)


def test_an_estimator_that_needs_a_critic_has_one(rules) -> None:
    refused = rules("grpo/toy").refused(algorithm__adv_estimator="gae", critic__enable=False)
    assert refused.startswith("algorithm.adv_estimator=gae needs a critic, and critic.enable is false.")


def test_a_group_of_one_row_is_said(rules) -> None:
    alone = {f"{ROLLOUT}__n": 1, f"{ACTOR}__ppo_micro_batch_size_per_gpu": 1}
    alone[f"{ROLLOUT}__log_prob_micro_batch_size_per_gpu"] = 1
    (warning,) = rules("grpo/toy").check(**alone)
    assert warning.startswith("actor_rollout_ref.rollout.n=1 with algorithm.adv_estimator=grpo: a group of one row has")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("algorithm.adv_estimator", "rlo", "verl has no such name. Did you mean 'rloo'?"),
        ("actor_rollout_ref.actor.policy_loss.loss_mode", "gsop", "Did you mean 'gspo'?"),
        ("actor_rollout_ref.rollout.agent.default_agent_loop", "tool_agnt", "Did you mean 'tool_agent'?"),
        ("actor_rollout_ref.actor.kl_loss_type", "lowvar", "no such estimate of the KL divergence. Did you mean"),
        ("data.custom_cls.path", "gone.py", "data.custom_cls.path=gone.py: no such file"),
        ("actor_rollout_ref.rollout.multi_turn.tool_config_path", "gone.yaml", "no such file"),
    ],
)
def test_names_that_verl_looks_up_late_are_looked_up_before(configured, key: str, value: str, message: str) -> None:
    cfg = configured("grpo/toy", actor_rollout_ref__actor__use_kl_loss=True)
    check_names(cfg)
    OmegaConf.update(cfg, key, value, force_add=True)
    with pytest.raises(ConfigError) as refusal:
        check_names(cfg)
    assert str(refusal.value).startswith(f"{key}={value}") and message in str(refusal.value)


@pytest.mark.parametrize(("loop", "shown"), [("tool_agnt", "tool_agnt"), (None, "None")])
def test_a_loop_that_a_row_names_is_looked_up_too(configured, tmp_path, loop, shown: str) -> None:
    for name, loops in {"good": ["tool_agent", "s2l_seeded"], "bad": ["tool_agent", loop]}.items():
        pq.write_table(pa.table({"agent_name": loops}), tmp_path / f"{name}.parquet")
    good, bad = str(tmp_path / "good.parquet"), str(tmp_path / "bad.parquet")
    check_names(configured("grpo/toy", data__train_files=good, data__val_files=[good]))
    check_names(configured("grpo/toy", data__val_files=bad, **{f"{ROLLOUT}__agent__agent_loop_config_path": __file__}))
    with pytest.raises(ConfigError, match=f"^column agent_name of data.val_files={shown}: verl has no such name"):
        check_names(configured("grpo/toy", data__train_files=good, data__val_files=[good, bad]))


def test_a_library_of_the_users_may_register_more(configured) -> None:
    check_names(configured("grpo/toy", algorithm__adv_estimator="mine", actor_rollout_ref__model__external_lib="mine"))
