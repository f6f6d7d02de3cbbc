"""Rules of ``s2l.kl`` and ``s2l.curriculum`` on the composed toy recipe: what is refused, by which words."""

import math

import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.config import GaussianConfig
from s2l_ext.methods.kl.config import AccuracyKLConfig
from s2l_ext.methods.registry import accuracy_settings, parse_s2l
from s2l_ext.training.rules import check_against_verl


@pytest.fixture(scope="module")
def recipe(rules):
    return rules("expo/toy")


def rising(accuracy: float) -> float:
    return 1.0 + accuracy


def falling(accuracy: float) -> float:
    return 1.0 - accuracy / 2


NOT_A_FUNCTION = 3


class Mine:
    """A curriculum of one's own."""


HERE = __name__


def test_the_recipe_passes_without_a_warning(recipe) -> None:
    assert recipe.check() == []


def test_defaults_are_the_paper() -> None:
    kl, curriculum = AccuracyKLConfig(), GaussianConfig()
    assert (kl.type, kl.beta, kl.rho) == ("accuracy", 0.02, "tanh")
    assert (curriculum.type, curriculum.center, curriculum.sigma, curriculum.ema) == ("gaussian", 0.5, 0.35, 0.9)
    assert curriculum.estimate_from == "learner_unguided" and curriculum.on_mismatch == "error"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("s2l.curriculum.sigma", 0, "must be > 0"),
        ("s2l.curriculum.sigma", -1.0, "must be > 0"),
        ("s2l.curriculum.center", 1.01, "must be >= 0 and <= 1"),
        ("s2l.curriculum.center", -0.1, "must be >= 0 and <= 1"),
        ("s2l.curriculum.ema", 1.0, "must be >= 0 and < 1"),
        ("s2l.curriculum.ema", -0.1, "must be >= 0 and < 1"),
        ("s2l.curriculum.sigma", math.nan, "a finite number"),
        ("s2l.kl.beta", -0.02, "must be >= 0"),
        ("s2l.kl.type", "acuracy", "Did you mean 'accuracy'"),
    ],
)
def test_values_out_of_range_name_key_and_value(recipe, key: str, value: object, words: str) -> None:
    message = recipe.refused(**{key.replace(".", "__"): value})
    assert message.startswith(f"{key}={value!r}") and words in message


def test_values_of_other_types_are_checked_as_well(recipe) -> None:
    target = recipe.refused(s2l__kl__type="adaptive_target", s2l__kl__target=0.0)
    assert target == "s2l.kl.target=0.0 is out of range: it must be > 0."
    order = recipe.refused(s2l__curriculum__type="easy_to_hard", s2l__curriculum__tier_order="easy")
    assert order.startswith("s2l.curriculum.tier_order='easy'") and "must be a list" in order


def test_kl_without_a_kl_term_is_refused(recipe) -> None:
    message = recipe.refused(actor_rollout_ref__actor__use_kl_loss=False)
    assert "nothing would happen" in message and "actor_rollout_ref.actor.use_kl_loss=True" in message


def test_kl_in_the_reward_as_well_is_refused_with_both_knobs(recipe) -> None:
    message = recipe.refused(algorithm__use_kl_in_reward=True)
    assert "algorithm.use_kl_in_reward" in message and "s2l.kl" in message and "twice" in message


def test_two_coefficients_are_refused(recipe) -> None:
    message = recipe.refused(actor_rollout_ref__actor__kl_loss_coef=0.05)
    assert "kl_loss_coef=0.05" in message and "s2l.kl.beta=0.02" in message


def test_the_same_coefficient_twice_is_fine(recipe) -> None:
    assert recipe.check(actor_rollout_ref__actor__kl_loss_coef=0.02) == []


def test_beta_zero_is_said(recipe) -> None:
    assert "weighs nothing" in recipe.check(s2l__kl__beta=0.0)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("constant", "rho", "linear"),
        ("accuracy", "target", 0.1),
        ("accuracy", "horizon", 500),
        ("adaptive_target", "rho", "power"),
        ("constant", "integral", 0.1),
    ],
)
def test_kl_keys_that_the_type_does_not_read_are_refused(recipe, kind: str, key: str, value: object) -> None:
    message = recipe.refused(**{"s2l__kl__type": kind, f"s2l__kl__{key}": value})
    assert message.startswith(f"s2l.kl.{key}: type={kind} does not have this key, type=")


@pytest.mark.slow
@pytest.mark.parametrize(("rho", "key"), [("tanh", "rho_low"), ("math:exp", "rho_high"), ("linear", "rho_exponent")])
def test_keys_that_a_shape_of_rho_does_not_read_are_refused(recipe, rho: str, key: str) -> None:
    message = recipe.refused(s2l__kl__rho=rho, **{f"s2l__kl__{key}": 0.7})
    assert message.startswith(f"s2l.kl.{key}=0.7 would be ignored with s2l.kl.rho={rho}: rho=")


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("uniform", "sigma", 0.1),
        ("file_order", "center", 0.1),
        ("gaussian", "tier_order", [1, 2]),
        ("gaussian", "options", {"a": 1}),
        ("easy_to_hard", "sigma", 0.2),
        (f"{HERE}:Mine", "warm_start", "x.jsonl"),
        (f"{HERE}:Mine", "ema", 0.5),
    ],
)
def test_curriculum_keys_that_the_type_does_not_read_are_refused(recipe, kind: str, key: str, value: object) -> None:
    message = recipe.refused(**{"s2l__curriculum__type": kind, f"s2l__curriculum__{key}": value})
    assert message.startswith(f"s2l.curriculum.{key}: type={kind} does not have this key, type=")


def test_target_controller_needs_its_target_and_a_long_enough_horizon(recipe) -> None:
    assert "s2l.kl.target" in recipe.refused(s2l__kl__type="adaptive_target")
    message = recipe.refused(s2l__kl__type="adaptive_target", s2l__kl__target=0.1, s2l__kl__horizon=10)
    assert "s2l.kl.horizon=10" in message and "Raise the horizon" in message
    assert recipe.check(s2l__kl__type="adaptive_target", s2l__kl__target=0.1) == []


def test_ones_own_rho_is_used_and_checked(recipe) -> None:
    assert recipe.check(s2l__kl__rho=f"{HERE}:rising") == []
    controller = AccuracyKLConfig(rho=f"{HERE}:rising").build(8)
    assert controller.coefficient(0.5) == pytest.approx(0.02 * 1.5)
    assert "falls" in recipe.refused(s2l__kl__rho=f"{HERE}:falling")
    assert "must be a function" in recipe.refused(s2l__kl__rho=f"{HERE}:NOT_A_FUNCTION")


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        ("tan", "Did you mean 'tanh'"),
        ("no.such.module:rho", "no.such.module cannot be imported"),
        (f"{HERE}:rsing", "Did you mean 'rising'"),
    ],
)
def test_unknown_rho_is_refused(recipe, rho: str, words: str) -> None:
    assert words in recipe.refused(s2l__kl__rho=rho)


def test_shapes_of_rho_read_their_own_keys(recipe) -> None:
    linear = AccuracyKLConfig(rho="linear", rho_low=0.4, rho_high=0.8).build(8)
    power = AccuracyKLConfig(rho="power", rho_low=0.4, rho_high=0.8, rho_exponent=2.0).build(8)
    assert linear.coefficient(0.5) == pytest.approx(0.02 * 0.6)
    assert power.coefficient(0.5) == pytest.approx(0.02 * 0.5)
    assert "falls" in recipe.refused(s2l__kl__rho="linear", s2l__kl__rho_low=0.9, s2l__kl__rho_high=0.8)


def test_unknown_curriculum_is_refused_with_the_choices(recipe) -> None:
    message = recipe.refused(s2l__curriculum__type="gausian")
    assert "Did you mean 'gaussian'" in message and "easy_to_hard" in message and "s2l.curricula" in message


@pytest.mark.parametrize(
    "key",
    ["algorithm.filter_groups.enable", "trainer.v1.sampler.sync_refill_failed_groups", "skip.rollout_tq.enable"],
)
def test_whatever_draws_other_prompts_is_refused(recipe, key: str) -> None:
    message = recipe.refused(**{key.replace(".", "__"): True})
    assert f"{key}=True" in message and "s2l.curriculum=null" in message


def test_prefetching_is_refused(recipe) -> None:
    cfg = recipe.composed.copy()
    OmegaConf.update(cfg, "trainer.device", "cuda")
    OmegaConf.update(cfg, "data.dataloader_num_workers", 2)
    with pytest.raises(ConfigError, match=r"data.dataloader_num_workers=2 breaks s2l.curriculum"):
        check_against_verl(parse_s2l(cfg.s2l), cfg)


def test_file_order_by_verls_switch_contradicts_a_draw(recipe) -> None:
    assert "s2l.curriculum.type=file_order" in recipe.refused(data__shuffle=False)
    assert recipe.check(data__shuffle=False, s2l__curriculum__type="file_order") == []


@pytest.mark.slow
def test_a_random_subset_needs_a_seed(recipe) -> None:
    assert "data.seed" in recipe.refused(data__seed=None)


def test_the_first_rows_need_no_seed(recipe) -> None:
    assert recipe.check(data__seed=None, data__shuffle=False, s2l__curriculum__type="file_order") == []


def test_split_steps_and_distillation_are_refused(recipe) -> None:
    assert "parameter_sync_step=2" in recipe.refused(trainer__v1__sync__parameter_sync_step=2)
    assert "distillation.enabled" in recipe.refused(distillation__enabled=True)


def test_target_in_other_units_and_own_replay_buffers_are_warned_of(recipe) -> None:
    settings = {"s2l__kl__type": "adaptive_target", "s2l__kl__target": 0.1}
    assert "not a mean over tokens" in recipe.check(actor_rollout_ref__actor__loss_agg_mode="seq-mean", **settings)[0]
    sampler = {f"trainer__v1__sampler__custom_sampler__{key}": "Mine" for key in ("path", "name")}
    assert "must return the prompts" in recipe.check(**sampler)[0]


def test_ones_own_rho_that_raises_is_refused_in_words(recipe) -> None:
    assert "cannot be called with an accuracy (ValueError" in recipe.refused(s2l__kl__rho="math:log")


def test_curriculum_by_entry_point(recipe, monkeypatch) -> None:
    from importlib.metadata import EntryPoint

    from s2l_ext.config import resolve as module

    point = EntryPoint("mine", f"{HERE}:Mine", "s2l.curricula")
    monkeypatch.setattr(module, "entry_points", lambda group: [point] if group == "s2l.curricula" else [])
    assert recipe.check(s2l__curriculum__type="mine") == []
    assert module.resolve("mine", "key", (), "s2l.curricula") is Mine
    assert "mine" in recipe.refused(s2l__curriculum__type="none_such")


def test_who_needs_accuracy(configured) -> None:
    def needing(**blocks: dict) -> list[str]:
        return accuracy_settings(parse_s2l(blocks), configured("expo/toy"))

    assert needing(kl={}, curriculum={}) == ["s2l.curriculum.type=gaussian", "s2l.kl.type=accuracy"]
    assert needing(kl={"type": "constant"}, curriculum={"type": "uniform"}) == []
    assert needing(curriculum={"type": "a.b:C"}) == ["s2l.curriculum.type=a.b:C"]
    assert needing(distill={"loss": "sft", "correct_only": True}) == ["s2l.distill.correct_only=True"]
    assert needing() == []
