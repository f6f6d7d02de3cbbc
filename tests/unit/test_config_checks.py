"""Rules between the ``s2l:`` block and verl's settings, on the composed toy recipe."""

from __future__ import annotations

import ast
import importlib.util
import pickle
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.explorer.rules import GROUP_ESTIMATORS, ROLLOUT_KEYS_OUTSIDE_YAML, UNGROUPED_ESTIMATORS
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.rules import check_against_verl
from s2l_ext.training.verl_command import UNFED_ESTIMATORS


@pytest.fixture(scope="module")
def composed() -> DictConfig:
    return compose_config("s2l_po/toy", [])


def changed(composed: DictConfig, **settings: object) -> DictConfig:
    """A copy with settings given as ``trainer__device="cuda"``."""
    cfg = pickle.loads(pickle.dumps(composed))  # eight times as fast as copy()
    with open_dict(cfg):
        for name, value in settings.items():
            OmegaConf.update(cfg, name.replace("__", "."), value, force_add=True)
    return cfg


def check(cfg: DictConfig) -> list[str]:
    return check_against_verl(parse_s2l(cfg.s2l), cfg)


def refused(cfg: DictConfig) -> str:
    with pytest.raises(ConfigError) as refusal:
        check(cfg)
    return str(refusal.value)


@pytest.mark.slow
def test_the_recipe_itself_passes_without_a_warning(composed):
    assert check(composed) == []


@pytest.mark.slow
def test_group_of_one_is_refused(composed):
    assert "actor_rollout_ref.rollout.n=1" in refused(changed(composed, actor_rollout_ref__rollout__n=1))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(UNGROUPED_ESTIMATORS))
def test_estimator_without_a_group_is_refused_by_name(composed, name):
    message = refused(changed(composed, algorithm__adv_estimator=name))
    assert message.startswith(f"algorithm.adv_estimator={name} ") and "algorithm.adv_estimator=grpo" in message


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GROUP_ESTIMATORS))
def test_group_estimators_pass(composed, name):
    assert check(changed(composed, algorithm__adv_estimator=name)) == []


def test_estimator_of_somebody_else_is_a_warning(composed):
    (warning,) = check(changed(composed, algorithm__adv_estimator="mine"))
    assert "algorithm.adv_estimator=mine" in warning


def test_mix_steps_beyond_the_run_warns_with_both_numbers(composed):
    (warning,) = check(changed(composed, s2l__explorer__mix_steps=20))
    assert "mix_steps=20" in warning and "16 steps" in warning
    assert check(changed(composed, s2l__explorer__mix_steps=16)) == []


def test_keeping_one_checkpoint_is_a_warning(composed):
    (warning,) = check(changed(composed, trainer__max_actor_ckpt_to_keep=1, trainer__save_freq=2))
    assert "trainer.max_actor_ckpt_to_keep=1" in warning and "Set 2" in warning
    assert check(changed(composed, trainer__max_actor_ckpt_to_keep=2, trainer__save_freq=2)) == []
    assert check(changed(composed, trainer__max_actor_ckpt_to_keep=1)) == []


def test_bypass_mode_is_refused(composed):
    message = refused(changed(composed, algorithm__rollout_correction__bypass_mode=True))
    assert "algorithm.rollout_correction.bypass_mode=True" in message


def test_verls_own_importance_sampling_points_at_ours(composed):
    message = refused(changed(composed, algorithm__rollout_correction__rollout_is="token"))
    assert "rollout_is=token" in message and "s2l.explorer.correction=truncated_is" in message


def test_rejection_is_a_warning(composed):
    (warning,) = check(changed(composed, algorithm__rollout_correction__rollout_rs="token_k1"))
    assert "rollout_rs=token_k1" in warning


def test_truncated_is_needs_the_samplers_log_probs(composed):
    settings = {"s2l__explorer__correction": "truncated_is"}
    assert check(changed(composed, **settings)) == []
    message = refused(changed(composed, **settings, actor_rollout_ref__rollout__calculate_log_probs=False))
    assert "Set actor_rollout_ref.rollout.calculate_log_probs=True" in message


@pytest.mark.slow
def test_a_cap_that_would_be_ignored_is_refused(composed):
    assert "would be ignored" in refused(changed(composed, s2l__explorer__is_cap=3.0))
    assert check(changed(composed, s2l__explorer__is_cap=3.0, s2l__explorer__correction="truncated_is")) == []


def test_other_engines_are_refused(composed):
    assert "actor_rollout_ref.rollout.name=sglang" in refused(
        changed(composed, actor_rollout_ref__rollout__name="sglang")
    )


def test_tensor_parallel_size_must_divide_the_explorers_gpus(composed):
    settings = {"s2l__explorer__tensor_model_parallel_size": 2, "s2l__explorer__n_gpus_per_node": 3}
    message = refused(changed(composed, **settings))
    assert "tensor_model_parallel_size=2" in message and "n_gpus_per_node 3" in message
    assert "nnodes 2" in refused(changed(composed, **settings, s2l__explorer__nnodes=2))
    whole_nodes = {"s2l__explorer__tensor_model_parallel_size": 4, "s2l__explorer__n_gpus_per_node": 2}
    assert check(changed(composed, **whole_nodes, s2l__explorer__nnodes=2)) == []


@pytest.mark.parametrize("with_explorer", [True, False])
def test_an_unknown_trainer_is_refused_with_the_list(composed, with_explorer):
    cfg = changed(composed, trainer__v1__trainer_mode="one_step_off")
    if not with_explorer:
        cfg.s2l.explorer = None
    message = refused(cfg)
    assert "trainer.v1.trainer_mode=one_step_off" in message and "sync, colocate_async, separate_async" in message


@pytest.mark.parametrize(
    ("loggers", "words"),
    [
        (["console", "wandbb"], "verl has no tracker 'wandbb'. Did you mean 'wandb'?"),
        ("clearml", "clearml needs the package clearml, which is not installed here. `pip install clearml`"),
    ],
)
def test_a_tracker_that_cannot_start_is_refused_before_models_load(composed, loggers, words):
    assert words in refused(changed(composed, trainer__logger=loggers))


def test_the_legacy_trainer_is_refused(composed):
    assert "trainer.use_v1=False" in refused(changed(composed, trainer__use_v1=False))


def test_greedy_explorer_is_a_warning(composed):
    (warning,) = check(changed(composed, s2l__explorer__temperature=0))
    assert "greedy" in warning


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("max_num_seq", "Did you mean 'max_num_seqs'?"),
        ("temperature", "Set s2l.explorer.temperature instead"),
        ("n", "holds for the whole step"),
    ],
)
def test_rollout_overrides_that_would_do_nothing_are_refused(composed, name, part):
    message = refused(changed(composed, s2l__explorer__rollout_overrides={name: 1}))
    assert f"s2l.explorer.rollout_overrides.{name}" in message and part in message


def test_rollout_overrides_of_engine_keys_pass(composed):
    overrides = {"gpu_memory_utilization": 0.8, "enable_sleep_mode": False}
    assert check(changed(composed, s2l__explorer__rollout_overrides=overrides)) == []


def test_dataloader_workers_are_refused_where_they_break_something(composed):
    message = refused(changed(composed, data__dataloader_num_workers=3))
    assert "data.dataloader_num_workers=3" in message and "trainer.device=cpu" in message
    assert message.endswith("Set data.dataloader_num_workers=0.")
    assert check(changed(composed, data__dataloader_num_workers=3, trainer__device="cuda")) == []


@pytest.mark.parametrize("key", ["actor_rollout_ref.rollout.n", "trainer.total_training_steps"])
def test_text_where_a_whole_number_belongs(composed, key):
    message = refused(changed(composed, **{key.replace(".", "__"): "many"}))
    assert message.startswith(f"{key}='many' has the wrong type (str)")


def test_without_an_explorer_the_explorers_rules_do_not_apply(composed):
    settings = {"algorithm__adv_estimator": "gae", "actor_rollout_ref__rollout__n": 1, "s2l__explorer": None}
    settings["critic__enable"] = True
    settings["actor_rollout_ref__actor__use_dynamic_bsz"] = True  # else 16 rows are too few for their micro-batch
    assert check(changed(composed, **settings)) == []


@pytest.mark.slow
def test_rollout_fields_outside_yaml_are_verls(composed):
    """Contract with verl 0.9.1: every field of RolloutConfig is a key of its YAML or in our list."""
    package = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    tree = ast.parse((package / "workers/config/rollout.py").read_text())
    (config,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "RolloutConfig")
    fields = {node.target.id for node in config.body if isinstance(node, ast.AnnAssign)}
    plain = compose_config("ppo_trainer", [])
    assert fields - set(plain.actor_rollout_ref.rollout) - {"_mutable_fields"} == ROLLOUT_KEYS_OUTSIDE_YAML


def test_estimators_are_verls():
    """Contract with verl 0.9.1: each of its estimators is in one of the three lists."""
    package = Path(importlib.util.find_spec("verl").submodule_search_locations[0])
    tree = ast.parse((package / "trainer/ppo/core_algos.py").read_text())
    (enum,) = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "AdvantageEstimator")
    names = {ast.literal_eval(node.value) for node in enum.body if isinstance(node, ast.Assign)}
    assert names == GROUP_ESTIMATORS | UNGROUPED_ESTIMATORS | UNFED_ESTIMATORS
