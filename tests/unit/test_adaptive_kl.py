"""KL coefficients: the paper's values by hand, shapes of rho, and the target controller against PPO's rule."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, StateMismatch
from s2l_ext.methods.kl.coefficient import (
    AccuracyConditionedKL,
    AdaptiveTargetKL,
    ConstantKL,
    PowerRho,
    check_rho,
    tanh_rho,
)

UNIT = st.floats(0, 1)


@pytest.mark.parametrize(
    ("accuracy", "factor"), [(0, 0.5), (0.1, 0.550), (0.25, 0.622), (0.5, 0.7311), (0.75, 0.818), (1, 0.8808)]
)
def test_the_papers_values(accuracy: float, factor: float) -> None:
    digits = 4 if factor in (0.7311, 0.8808) else 3
    assert AccuracyConditionedKL(beta=0.02).coefficient(accuracy) == pytest.approx(
        0.02 * factor, abs=0.02 * 10**-digits
    )


def test_paper_range_of_beta() -> None:
    controller = AccuracyConditionedKL()
    assert controller.coefficient(0) == pytest.approx(0.0100, abs=1e-6)
    assert controller.coefficient(1) == pytest.approx(0.0176, abs=2e-5)


@given(UNIT, UNIT)
def test_higher_accuracy_never_gives_a_lower_coefficient(a: float, b: float) -> None:
    low, high = sorted((a, b))
    controller = AccuracyConditionedKL(beta=0.5)
    assert controller.coefficient(low) <= controller.coefficient(high)


@pytest.mark.parametrize("accuracy", [math.nan, -0.01, 1.01, math.inf, None])
def test_accuracy_outside_zero_to_one_is_refused(accuracy: float) -> None:
    with pytest.raises(ValueError, match=f"accuracy={accuracy}: .* lies in \\[0, 1\\]"):
        AccuracyConditionedKL().coefficient(accuracy)


@pytest.mark.parametrize("beta", [-0.001, math.nan, math.inf])
@pytest.mark.parametrize("kind", [ConstantKL, AccuracyConditionedKL])
def test_negative_beta_is_refused(kind, beta: float) -> None:
    with pytest.raises(ConfigError, match=f"beta={beta}"):
        kind(beta)


def test_accuracy_conditioned_kl_remembers_nothing() -> None:
    controller = AccuracyConditionedKL()
    first = controller.coefficient(0.3)
    controller.coefficient(0.9)
    controller.observe(5.0)
    assert controller.coefficient(0.3) == first and controller.state_dict() == {}
    assert controller.metrics() == {"rho": tanh_rho(0.3)}


def test_constant_ignores_accuracy() -> None:
    assert ConstantKL(0.03).coefficient(0.9) == ConstantKL(0.03).coefficient(None) == 0.03


# ---- rho ----------------------------------------------------------------------------------------------------------


def test_linear_and_power_by_hand() -> None:
    assert [PowerRho(0.5, 1.0)(x) for x in (0, 0.5, 1)] == [0.5, 0.75, 1.0]
    assert [PowerRho(0.2, 1.0, 2.0)(x) for x in (0, 0.5, 1)] == pytest.approx([0.2, 0.4, 1.0])


def test_neutral_rho_is_one_everywhere() -> None:
    assert AccuracyConditionedKL(0.02, PowerRho(1.0, 1.0)).coefficient(0.123) == 0.02


@pytest.mark.parametrize(
    ("rho", "words"),
    [
        (lambda x: 1 - x / 2, "falls from 1 to 0.995 at accuracy 0.01"),
        (lambda x: x, r"rho\(0\) = 0 must be a positive"),
        (lambda x: math.nan, r"rho\(0\) = nan"),
        (lambda x: math.inf if x == 1 else 1.0, r"rho\(1\) = inf"),
        (PowerRho(1.0, 0.5), "falls"),
    ],
)
def test_falling_or_non_positive_rho_is_refused_with_the_place(rho, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check_rho(rho, "s2l.kl.rho=mine")


# ---- toward a target ----------------------------------------------------------------------------------------------


def test_target_controller_is_ppos_rule_by_hand() -> None:
    """verl's AdaptiveKLController: value *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon."""
    from verl.trainer.ppo.core_algos import AdaptiveKLController

    ours, verls = AdaptiveTargetKL(0.02, target=0.1, gain=128 / 1000), AdaptiveKLController(0.02, 0.1, 1000)
    for kl in (0.3, 0.11, 0.05, 0.0, 0.1, 0.09):
        ours.observe(kl)
        verls.update(kl, n_steps=128)
        assert ours.coefficient(0.5) == pytest.approx(verls.value, rel=1e-12)


def test_integral_term_by_hand() -> None:
    controller = AdaptiveTargetKL(1.0, target=1.0, gain=0.5, integral=0.1)
    controller.observe(1.1)
    assert controller.coefficient() == pytest.approx(1 + 0.5 * (0.1 + 0.1 * 0.1))
    controller.observe(1.0)
    assert controller.coefficient() == pytest.approx((1 + 0.5 * 0.11) * (1 + 0.5 * 0.1 * 0.1))


@given(st.lists(st.floats(-1, 1e6), max_size=200))
def test_coefficient_stays_positive_whatever_the_kl(kls: list[float]) -> None:
    controller = AdaptiveTargetKL(0.01, target=0.05, gain=0.8, integral=0.5)
    for kl in kls:
        controller.observe(kl)
    assert controller.coefficient() > 0 and abs(controller.summed_error) <= 1


def test_resumed_controller_continues_exactly() -> None:
    controller = AdaptiveTargetKL(0.02, 0.1, 0.3, integral=0.2)
    controller.observe(0.5)
    resumed = AdaptiveTargetKL(0.02, 0.1, 0.3, integral=0.2)
    resumed.load_state_dict(controller.state_dict())
    for kl in (0.2, 0.05):
        controller.observe(kl)
        resumed.observe(kl)
        assert resumed.coefficient() == controller.coefficient()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"beta": 0.0}, "must start above 0"),
        ({"target": 0.0}, "target=0"),
        ({"target": -1.0}, "target=-1"),
        ({"gain": 5.0}, "Raise the horizon"),
        ({"gain": 1.0, "integral": 0.9}, "110 % in a step|by 110%"),
        ({"gain": 0.0}, "gain=0"),
    ],
)
def test_impossible_targets_are_refused(arguments: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        AdaptiveTargetKL(**{"beta": 0.02, "target": 0.1, "gain": 0.5, **arguments})


def test_a_kl_that_is_no_number_is_refused() -> None:
    with pytest.raises(ValueError, match="KL=nan"):
        AdaptiveTargetKL(0.02, 0.1, 0.5).observe(math.nan)


def test_state_of_another_controller_is_refused() -> None:
    with pytest.raises(StateMismatch, match="wanted beta, summed_error"):
        AdaptiveTargetKL(0.02, 0.1, 0.5).load_state_dict({"beta": 1.0})
