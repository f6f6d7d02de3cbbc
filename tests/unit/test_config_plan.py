"""The plan that is printed before a run."""

from __future__ import annotations

import functools
import pickle

import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.plan_summary import build_plan, fingerprint, render
from s2l_ext.methods.registry import parse_s2l

pytestmark = pytest.mark.slow


def plan_of(*overrides: str, recipe: str = "s2l_po/toy") -> dict:
    cfg = pickle.loads(pickle.dumps(_composed(recipe)))  # eight times as fast as copy()
    with open_dict(cfg):
        cfg.merge_with_dotlist(list(overrides))
    return build_plan(cfg, parse_s2l(cfg.s2l), recipe, "cpu")


@functools.cache
def _composed(recipe: str) -> DictConfig:
    return compose_config(recipe, [])


def test_plan_holds_models_placement_and_slots():
    plan = plan_of("trainer.total_training_steps=10", "trainer.default_local_dir=out")
    assert plan["learner"]["model"].endswith("models/medium") and plan["learner"]["gpus"] == 1
    assert plan["explorer"]["model_path"].endswith("models/small") and plan["explorer"]["gpus"] == 1
    assert plan["explorer"]["slots"] == [8, 7, 6, 5, 4, 3, 2, 0, 0, 0]
    assert plan["explorer"]["share_of_rollouts"] == pytest.approx(35 / 80)
    assert (plan["steps"], plan["group_size"], plan["prompts_per_step"]) == (10, 8, 16)
    assert (plan["output"], plan["off"]) == ("out", ["kl", "curriculum", "guidance", "distill"])


def test_text_shows_what_the_reader_must_know():
    text = render(plan_of())
    assert "s2l_po/toy on cpu" in text
    assert "8 7 6 5 4 3 2 0 0 0 0 0 0 0 0 0" in text and "27.3% of all rollouts" in text
    assert "temperature 0.7, top-p 0.95" in text
    assert "outputs/s2l_po_toy" in text


@pytest.mark.parametrize(
    ("save_freq", "line"),
    [(4, "a checkpoint every 4 steps and at the end"), (-1, "nothing: trainer.save_freq=-1 leaves no model")],
)
def test_a_run_says_whether_it_saves(save_freq, line):
    assert f"saves      {line}" in render(plan_of(f"trainer.save_freq={save_freq}"))


def test_a_run_without_the_explorer_says_so():
    plan = plan_of(recipe="grpo/toy")
    assert plan["explorer"] is None and plan["off"] == ["explorer", "kl", "curriculum", "guidance", "distill"]
    assert "off        explorer, kl" in render(plan) and "slots" not in render(plan)


def test_expo_says_its_range_of_beta_and_its_curriculum():
    plan = plan_of(recipe="expo/toy")
    assert plan["kl_in_loss"] == "in the loss, 0.02 x rho(accuracy), rho=tanh: 0.01 to 0.01762"
    settings = {
        "type": "gaussian",
        "center": 0.5,
        "sigma": 0.35,
        "ema": 0.9,
        "estimate_from": "learner_unguided",
        "warm_start": None,
        "on_mismatch": "error",
    }
    assert plan["curriculum"] == settings
    assert "prompts    gaussian, center 0.5, ema 0.9, estimate_from learner_unguided, sigma 0.35" in render(plan)


def test_guidance_in_words():
    plan = plan_of(recipe="g2rpo_a/toy")
    assert (plan["guidance"]["alpha"], plan["guidance"]["length"]["initial"]) == (0.5, 44)
    line = "4 of 8 sessions, adaptive length (averaging sliding, estimate_from learner, initial 44, max_length 48, "
    assert line + "min_length 1, window 2), guidance tokens masked" in render(plan)


def test_kl_in_words():
    assert plan_of(recipe="expo/gcs_only")["kl_in_loss"] == "0.02 in the loss"
    target = plan_of("s2l.kl.type=adaptive_target", "s2l.kl.target=0.1", recipe="expo/toy")
    assert target["kl_in_loss"] == "in the loss, 0.02 at first, then held at 0.1 nats per token"
    assert plan_of(recipe="grpo/toy")["kl_in_loss"] is None and "KL off" in render(plan_of(recipe="grpo/toy"))


def test_steps_that_the_data_decides():
    plan = plan_of("trainer.total_training_steps=null", "data.train_files=[a.parquet,b.parquet]")
    assert plan["steps"] is None and plan["explorer"]["share_of_rollouts"] is None
    assert plan["explorer"]["slots"] == [8, 7, 6, 5, 4, 3, 2, 0]
    assert "as many as the data gives" in render(plan) and "['a.parquet', 'b.parquet']" in render(plan)


def test_a_long_schedule_is_cut_in_the_text_only():
    plan = plan_of("trainer.total_training_steps=100")
    assert len(plan["explorer"]["slots"]) == 100
    assert "... (100 steps)" in render(plan)


def test_fingerprint_follows_values_not_key_order():
    a = OmegaConf.create({"x": 1, "y": {"z": "${x}"}})
    b = OmegaConf.create({"y": {"z": 1}, "x": 1})
    assert fingerprint(a) == fingerprint(b) and len(fingerprint(a)) == 16
    assert fingerprint(a) != fingerprint(OmegaConf.create({"x": 2, "y": {"z": "${x}"}}))
