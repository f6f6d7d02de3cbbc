"""Recipes made for the CPU where vLLM needs the accelerator: the overlay, and what stays the user's."""

from __future__ import annotations

import functools

import pytest

from s2l_ext.errors import ConfigError
from s2l_ext.launch import train
from s2l_ext.launch.accelerators import require_attention
from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.toy_on_gpu import compose_for_this_machine
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import before_run
from s2l_ext.training.rules import check_against_verl

pytestmark = pytest.mark.slow
TOYS = ("grpo/toy", "s2l_po/toy", "expo/toy", "g2rpo_a/toy", "combined/expo_s2l", "sparse_to_dense/stages/opd")


def composed(recipe, *overrides):
    return compose_for_this_machine(functools.partial(compose_config, recipe), overrides)


@pytest.mark.parametrize("recipe", TOYS)
def test_a_toy_recipe_is_made_one_for_the_accelerator(one_gpu, recipe):
    cfg, [warning] = composed(recipe)
    s2l, rollout = parse_s2l(cfg.s2l), cfg.actor_rollout_ref.rollout
    assert check_against_verl(s2l, cfg) == []
    assert (cfg.trainer.device, rollout.dtype, rollout.free_cache_engine) == ("cuda", "bfloat16", True)
    assert cfg.actor_rollout_ref.actor.fsdp_config.mixed_precision is None
    assert cfg.ray_kwargs.ray_init.num_gpus is None and cfg.actor_rollout_ref.model.use_remove_padding
    assert s2l.live_explorer is None or s2l.live_explorer.is_colocated
    assert "runs on the accelerator" in warning


def test_the_users_settings_win(one_gpu):
    key = "actor_rollout_ref.rollout.gpu_memory_utilization"
    cfg, _ = composed("s2l_po/toy", f"{key}=0.3", "s2l.explorer.placement=dedicated")
    assert cfg.actor_rollout_ref.rollout.gpu_memory_utilization == 0.3
    assert cfg.s2l.explorer.placement == "dedicated"


def test_two_cards_leave_the_explorer_its_own(one_gpu, monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    cfg, _ = composed("s2l_po/toy")
    assert "placement" not in cfg.s2l.explorer


def test_on_another_machine_a_recipe_is_its_own(monkeypatch):
    cfg, warnings = composed("s2l_po/toy")
    assert (cfg.trainer.device, warnings) == ("cpu", [])


def test_the_demos_recipe_passes_every_check_of_train_on_one_gpu(one_gpu, monkeypatch):
    monkeypatch.setattr(before_run, "check_inputs", lambda cfg, s2l: [])
    monkeypatch.setattr(train, "_ask_verl", lambda cfg: None)
    prepared = train.prepare("s2l_po/toy", [])
    assert prepared.plan["platform"] == "cuda" and len(prepared.warnings) == 1
    assert prepared.s2l.live_explorer.is_colocated


@pytest.mark.parametrize("given", [None, "flash_attention_2"])
def test_attention_that_is_not_installed_is_refused(configured, given, monkeypatch):
    sdpa = configured("grpo/qwen3_8b")
    cfg = configured("grpo/qwen3_8b", actor_rollout_ref__model__override_config__attn_implementation=given)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    require_attention(sdpa)
    with pytest.raises(ConfigError, match=r"attn_implementation=flash_attention_2.*Set \+\+actor_rollout_ref.*=sdpa"):
        require_attention(cfg)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name == "flash_attn" or None)
    require_attention(cfg)
