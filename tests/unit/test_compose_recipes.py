"""Recipes on top of verl's configuration: every YAML composes and validates, overrides keep working."""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from s2l_ext.errors import ConfigError
from s2l_ext.launch.accelerators import GIB, parse_accelerators
from s2l_ext.launch.compose import PACKAGED_RECIPES, compose_config, recipe_names, require_values, search_folders
from s2l_ext.launch.memory_check import check_memory
from s2l_ext.launch.train import _ask_verl
from s2l_ext.methods.kl.config import ConstantKLConfig
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.rules import check_against_verl

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
RECIPES = recipe_names([REPOSITORY / "recipes"])
STAGES = "sparse_to_dense/stages/"
TRACES = "g2rpo_a/sft_on_traces"
OTHERS_SAMPLE = (
    "s2l_po/",
    "combined/",
    "one_gpu/s2l_po",
    "gpu_check/s2l_po",
    f"{STAGES}warm_up",
    f"{STAGES}teacher_sample_sft",
    TRACES,
)
METHOD_FOLDERS = sorted({name.split("/")[0] for name in RECIPES})


def test_the_recipes_of_the_first_release_are_there():
    assert {
        "grpo/toy",
        "grpo/qwen3_8b",
        "s2l_po/toy",
        "s2l_po/gsm8k_smoke",
        "s2l_po/qwen3_1.7b_to_8b",
        "expo/toy",
        "expo/qwen3_8b",
        "expo/akl_only",
        "expo/gcs_only",
        "combined/expo_s2l",
    } <= set(RECIPES)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_recipe_composes_and_validates_by_us_and_by_verl(name):
    cfg = compose_config(name, [])
    s2l = parse_s2l(cfg.s2l)
    warnings = check_against_verl(s2l, cfg)
    assert warnings == []
    assert (s2l.explorer is not None) == name.startswith(OTHERS_SAMPLE)
    assert (s2l.kl is not None) == ("expo" in name)
    assert (s2l.guidance is not None) == ("g2rpo_a" in name and name != TRACES)
    device = cfg.trainer.device
    actor, ref = cfg.actor_rollout_ref.actor, cfg.actor_rollout_ref.ref
    assert (actor.strategy, ref.strategy) == ("fsdp2", "fsdp2")
    assert cfg.actor_rollout_ref.model.override_config.attn_implementation == "sdpa"  # flash-attn is an extra
    _ask_verl(cfg)
    if device == "cpu":
        assert cfg.trainer.device == "cpu"
        assert cfg.ray_kwargs.ray_init.num_gpus == cfg.trainer.n_gpus_per_node + (
            s2l.explorer.n_gpus if s2l.explorer else 0
        )


@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("one_gpu/")])
def test_a_recipe_for_one_gpu_fits_its_card_as_its_readme_says(name):
    cfg = compose_config(name, [])
    size = name.rpartition("_")[2].removesuffix("gb")
    report = check_memory(cfg, parse_s2l(cfg.s2l), parse_accelerators(f"1x{size}GB"))
    assert report.warnings == [] and sum(gpus_needed(cfg, parse_s2l(cfg.s2l)).values()) == 1
    peaks = {phase.name: f"{phase.total / GIB:.1f}" for phase in report.phases}
    readme = (REPOSITORY / "recipes/one_gpu/README.md").read_text()
    assert re.search(rf"\| `{name}` .*\| {peaks['rollout']}, {peaks['update']} \|", readme)
    rows = cfg.data.max_prompt_length + cfg.data.max_response_length
    learner = cfg.actor_rollout_ref
    assert rows <= min(learner.rollout.max_model_len, learner.actor.ppo_max_token_len_per_gpu)


def test_threads_may_compose_at_the_same_time():
    """`s2l study --jobs 2` does; Hydra's search path is one of the whole process."""
    with ThreadPoolExecutor(4) as pool:
        names = list(pool.map(lambda name: compose_config(name, []).trainer.project_name, ["grpo/toy"] * 8))
    assert names == [compose_config("grpo/toy", []).trainer.project_name] * 8


@pytest.mark.parametrize("folder", METHOD_FOLDERS)
def test_each_method_has_a_readme_and_a_script(folder):
    home = REPOSITORY / "recipes" / folder
    readme, script = (home / "README.md").read_text(), home / "run.sh"
    assert all(name in readme for name in RECIPES if name.startswith(f"{folder}/"))
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", str(script)], timeout=30).returncode == 0


def test_the_installed_package_brings_the_same_recipes():
    assert recipe_names([PACKAGED_RECIPES]) == RECIPES


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("data.train_batch_size", 1024),
        ("data.max_prompt_length", 512),
        ("data.max_response_length", 4096),
        ("actor_rollout_ref.rollout.n", 16),
        ("actor_rollout_ref.rollout.temperature", 1.0),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 1),
        ("actor_rollout_ref.actor.optim.lr", 1e-6),
        ("actor_rollout_ref.actor.ppo_mini_batch_size", 16),
        ("actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu", 2),
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.kl_loss_coef", 1e-3),
        ("actor_rollout_ref.actor.kl_loss_type", "low_var_kl"),
        ("actor_rollout_ref.actor.entropy_coeff", 0),
        ("actor_rollout_ref.actor.clip_ratio", 0.2),
        ("algorithm.adv_estimator", "grpo"),
        ("algorithm.use_kl_in_reward", False),
        ("trainer.total_training_steps", 16),
    ],
)
@pytest.mark.parametrize("name", ["grpo/qwen3_8b", "s2l_po/qwen3_1.7b_to_8b"])
def test_the_papers_pair_has_the_papers_values_in_both_arms(name, key, value):
    assert OmegaConf.select(_composed(name), key) == value


@pytest.mark.parametrize(
    ("name", "learner", "explorer", "group", "baseline"),
    [
        ("qwen3_1.7b_to_8b", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-1.7B-Base", 16, "qwen3_8b"),
        ("qwen3_4b_to_8b", "Qwen/Qwen3-8B-Base", "Qwen/Qwen3-4B-Base", 16, "qwen3_8b"),
        ("qwen3_4b_to_14b", "Qwen/Qwen3-14B-Base", "qwen3_4b", 8, "qwen3_14b"),
        ("internlm2.5_1.8b_to_7b", "internlm/internlm2_5-7b", "internlm2.5_1.8b", 16, "internlm2.5_7b"),
    ],
)
def test_pairs_of_s2l_po_differ_from_their_baseline_by_the_explorer(name, learner, explorer, group, baseline):
    """arXiv 2605.30789, section 4.1 and Table 1."""
    cfg, plain = _composed(f"s2l_po/{name}"), _composed(f"grpo/{baseline}")
    mixed = parse_s2l(cfg.s2l).explorer
    assert (cfg.actor_rollout_ref.model.path, cfg.actor_rollout_ref.rollout.n) == (learner, group)
    assert explorer == getattr(mixed, "model_path", None) or f"outputs/explorer_{explorer}" == mixed.store
    assert mixed.mix_steps == 8 and parse_s2l(plain.s2l).explorer is None
    for key in ("data", "algorithm", "reward", "actor_rollout_ref.model", "actor_rollout_ref.rollout.n"):
        assert OmegaConf.select(cfg, key) == OmegaConf.select(plain, key), key
    assert cfg.actor_rollout_ref.actor.ppo_mini_batch_size == plain.actor_rollout_ref.actor.ppo_mini_batch_size


@pytest.mark.parametrize(
    ("name", "model", "alpha", "group", "guided"),
    [
        ("qwen3_0.6b_math", "Qwen/Qwen3-0.6B-Base", 0.75, 12, 9),
        ("qwen3_1.7b_math", "Qwen/Qwen3-1.7B-Base", 0.25, 12, 3),
        ("qwen3_8b_math", "Qwen/Qwen3-8B-Base", 0.14, 7, 1),
        ("qwen3_0.6b_code", "Qwen/Qwen3-0.6B", 0.75, 12, 9),
        ("qwen3_1.7b_code", "Qwen/Qwen3-1.7B", 1.0, 12, 12),
        ("qwen3_8b_code", "Qwen/Qwen3-8B", 0.57, 7, 4),
        ("qwen2.5_math_7b_s1k", "Qwen/Qwen2.5-Math-7B", 0.1667, 6, 1),
    ],
)
def test_shares_of_g2rpo_a_are_the_papers(name, model, alpha, group, guided):
    """arXiv 2508.13023, section 5.1; the last is a cell of Table 1."""
    cfg = _composed(f"g2rpo_a/{name}")
    guidance = parse_s2l(cfg.s2l).guidance
    assert (cfg.actor_rollout_ref.model.path, cfg.actor_rollout_ref.rollout.n) == (model, group)
    assert guidance.alpha == alpha and round(alpha * group) == guided
    code = name.endswith("code")
    assert cfg.reward.custom_reward_function.path == f"pkg://s2l_ext.rewards.{'code' if code else 'math'}"


def test_the_study_on_s1k_fits_its_model():
    """arXiv 2508.13023, Table 1: one pass, a length of 500 that stays; the model has 4,096 positions."""
    cfg = _composed("g2rpo_a/qwen2.5_math_7b_s1k")
    length = parse_s2l(cfg.s2l).guidance.length
    assert (type(length).__name__, length.initial, cfg.trainer.total_epochs) == ("ConstantLength", 500, 1)
    assert cfg.data.max_prompt_length + cfg.data.max_response_length == 4096


def test_the_smaller_model_of_expo_differs_by_its_name_alone():
    small, large = _composed("expo/r1_distill_qwen_1.5b").copy(), _composed("expo/qwen3_8b").copy()
    assert small.actor_rollout_ref.model.path == "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"
    for cfg in (small, large):
        cfg.actor_rollout_ref.model.path = cfg.trainer.experiment_name = cfg.trainer.default_local_dir = ""
    assert small == large


def test_the_papers_pair_fills_one_node_of_eight():
    cfg = _composed("s2l_po/qwen3_1.7b_to_8b")
    explorer = parse_s2l(cfg.s2l).explorer
    assert (cfg.actor_rollout_ref.model.path, explorer.model_path) == ("Qwen/Qwen3-8B-Base", "Qwen/Qwen3-1.7B-Base")
    assert cfg.trainer.nnodes * cfg.trainer.n_gpus_per_node + explorer.n_gpus == 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("actor_rollout_ref.rollout.n", 8),
        ("data.train_batch_size", 256),
        ("data.max_prompt_length", 1024),
        ("data.max_response_length", 3072),
        ("actor_rollout_ref.actor.kl_loss_coef", 0.02),
        ("actor_rollout_ref.actor.kl_loss_type", "low_var_kl"),
        ("actor_rollout_ref.actor.use_kl_loss", True),
        ("actor_rollout_ref.actor.loss_agg_mode", "token-mean"),
        ("actor_rollout_ref.actor.clip_ratio", 0.2),
        ("actor_rollout_ref.actor.optim.lr", 1e-6),
        ("actor_rollout_ref.rollout.tensor_model_parallel_size", 2),
        ("trainer.total_epochs", 30),
        ("trainer.total_training_steps", None),
        ("s2l.kl.beta", 0.02),
        ("s2l.curriculum.center", 0.5),
        ("s2l.curriculum.sigma", 0.35),
        ("s2l.curriculum.ema", 0.9),
    ],
)
def test_expo_has_the_papers_values(key, value):
    cfg = _composed("expo/qwen3_8b").copy()
    cfg.s2l = parse_s2l(cfg.s2l).to_dict()  # with the defaults
    assert OmegaConf.select(cfg, key) == value


@pytest.mark.slow
def test_ablations_differ_from_expo_by_their_one_part():
    whole, akl, gcs = (parse_s2l(_composed(f"expo/{name}").s2l) for name in ("toy", "akl_only", "gcs_only"))
    assert akl == dataclasses.replace(whole, curriculum=None)
    assert gcs == dataclasses.replace(whole, kl=ConstantKLConfig(beta=whole.kl.beta))


@functools.cache
def _composed(name: str) -> DictConfig:
    return compose_config(name, [])


# ---- overrides ----------------------------------------------------------------------------------------------------


def test_hydras_grammar_keeps_working():
    cfg = compose_config(
        "s2l_po/toy",
        [
            "actor_rollout_ref.actor.optim.lr=1e-5",
            "+algorithm.foo=1",
            "++algorithm.bar={a: 2}",
            "~trainer.esi_redundant_time",
            "model_engine=megatron",
            "trainer.logger=[console,tensorboard]",
        ],
    )
    assert cfg.actor_rollout_ref.actor.optim.lr == 1e-5
    assert (cfg.algorithm.foo, cfg.algorithm.bar.a) == (1, 2)
    assert "esi_redundant_time" not in cfg.trainer
    assert cfg.actor_rollout_ref.actor._target_ == "verl.workers.config.McoreActorConfig"
    assert list(cfg.trainer.logger) == ["console", "tensorboard"]


def test_s2l_keys_need_no_plus_and_may_have_one():
    """The recipe has ``mix_steps`` and none of the others."""
    keys = ("+s2l.explorer.mix_steps=3", "s2l.explorer.top_p=0.5", "+s2l.explorer.top_k=7", "++s2l.explorer.is_cap=3.0")
    explorer = parse_s2l(compose_config("s2l_po/toy", keys).s2l).explorer
    assert (explorer.mix_steps, explorer.top_p, explorer.top_k, explorer.is_cap) == (3, 0.5, 7, 3.0)


@pytest.mark.parametrize("name", ["grpo/toy", "ppo_trainer"])
def test_an_explorer_can_be_added_where_the_recipe_has_none(name):
    cfg = compose_config(name, ["s2l.explorer.model_path=small"])
    assert parse_s2l(cfg.s2l).explorer.model_path == "small"


def test_a_key_that_nothing_sets_is_named_with_the_fix():
    named, judged = ["actor_rollout_ref.rollout.name=vllm"], ["reward.reward_model.enable=true"]
    require_values(compose_config("ppo_trainer", named))
    for given, key in (([], "actor_rollout_ref.rollout.name"), (named + judged, "reward.reward_model.rollout.name")):
        with pytest.raises(ConfigError, match=rf"^{key} is not set and has no default\. Set {key}=vllm\.$"):
            require_values(compose_config("ppo_trainer", given))


@pytest.mark.parametrize(("name", "command"), [("sparse_to_dense/toy", "pipeline"), ("studies/smoke", "study")])
def test_a_pipeline_and_a_study_name_their_command(name, command):
    with pytest.raises(
        ConfigError, match=rf"^--config-name {name}: this file is a {command}\. Run: s2l {command} {name}$"
    ):
        compose_config(name, [])


def test_an_override_that_hydra_cannot_read_is_one_message():
    with pytest.raises(ConfigError, match="^recipe grpo/toy: .*must be a string or a list"):
        compose_config("grpo/toy", ["=3"])


@pytest.mark.parametrize("override", ["s2l.explorer=null", "~s2l.explorer"])
def test_the_explorer_can_be_turned_off(override):
    assert parse_s2l(compose_config("s2l_po/toy", [override]).s2l).explorer is None


def test_unknown_s2l_key_gives_our_message():
    with pytest.raises(ConfigError, match=r"Did you mean 's2l.explorer.mix_steps'"):
        parse_s2l(compose_config("s2l_po/toy", ["s2l.explorer.mixsteps=3"]).s2l)


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("trainer.no_such_key=1", r"trainer\.no_such_key"),
        ("trainer.nnodes", "trainer.nnodes"),
        ("trainer.default_local_dir=${oc.env:S2L_NO_SUCH_VARIABLE}", "S2L_NO_SUCH_VARIABLE"),
        ("model_engine=dpp", "dpp"),
    ],
)
def test_what_hydra_refuses_is_one_line(override, part):
    with pytest.raises(ConfigError, match=part) as refusal:
        compose_config("grpo/toy", [override])
    assert str(refusal.value).startswith("recipe grpo/toy: ") and "\n" not in str(refusal.value)


# ---- finding recipes ----------------------------------------------------------------------------------------------


def test_unknown_recipe_suggests_and_lists():
    with pytest.raises(ConfigError) as refusal:
        compose_config("s2lpo/toy", [])
    message = str(refusal.value)
    assert message.startswith("--config-name s2lpo/toy: no such recipe. Did you mean 's2l_po/toy'?")
    assert all(name in message for name in RECIPES) and "base/cpu" not in message


OWN_RECIPE = "# @package _global_\ndefaults:\n  - /grpo/toy\n  - _self_\ntrainer:\n  experiment_name: mine\n"


@pytest.mark.slow
def test_own_recipe_by_folder_by_path_and_before_ours(tmp_path, monkeypatch):
    path = tmp_path / "recipes" / "grpo" / "toy_mine.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(OWN_RECIPE)
    assert compose_config("grpo/toy_mine", [], [tmp_path / "recipes"]).trainer.experiment_name == "mine"
    assert compose_config(str(path), []).trainer.experiment_name == "mine"
    monkeypatch.chdir(tmp_path)
    assert search_folders()[0] == (tmp_path / "recipes").resolve()
    assert compose_config("grpo/toy_mine", ["trainer.nnodes=2"]).trainer.nnodes == 2


def test_missing_config_folder_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"--config-dir .*absent: no such folder"):
        compose_config("grpo/toy", [], [tmp_path / "absent"])


def test_composing_does_not_import_verl(tmp_path):
    code = (
        "import sys; from s2l_ext.launch.compose import compose_config; compose_config('s2l_po/toy', []); "
        "sys.exit(', '.join({'verl', 'ray', 'torch'} & set(sys.modules)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
