"""Guidance lengths: the rule by hand, the authors' cycle on a sequence, decays at their ends, state."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, StateMismatch
from s2l_ext.methods.guidance.length import (
    AdaptiveGuidance,
    AdditiveGuidance,
    ConcaveDecay,
    Constant,
    LinearDecay,
    StepwiseDecay,
    guided_sessions,
)


def after(*accuracies: float, length: int = 1000, **settings) -> AdaptiveGuidance:
    """A controller that saw all but the last accuracy at ``length``, and then the last."""
    controller = AdaptiveGuidance(initial=length, **settings)
    for accuracy in accuracies[:-1]:
        controller.observe(accuracy)
    controller.length = length
    controller.observe(accuracies[-1])
    return controller


@pytest.mark.parametrize(("now", "length"), [(0.25, 2000), (1.0, 500), (0.5, 1000), (0.0, 1000)])
def test_the_rule_by_hand(now: float, length: int) -> None:
    assert after(0.4, 0.6, now).length == length


def test_zero_average_leaves_the_length() -> None:
    assert after(0.0, 0.0, 0.7).length == 1000


def test_first_step_has_nothing_to_compare_with_and_the_second_one_value() -> None:
    controller = AdaptiveGuidance(initial=1000)
    controller.observe(0.5)
    assert controller.length == 1000
    controller.observe(0.25)
    assert controller.length == 2000


def test_window_slides() -> None:
    """Third length from the mean of 0.8 and 0.4, not of 0.2 and 0.8."""
    assert after(0.2, 0.8, 0.4, 0.6).length == 1000


def test_bounds() -> None:
    assert after(1.0, 1.0, 0.01).length == 3072
    assert after(0.01, 0.01, 1.0, length=20).length == 1
    assert after(0.01, 0.01, 1.0, length=20, min_length=5).length == 5


def test_largest_change() -> None:
    assert after(0.4, 0.6, 0.05, max_change=1.5).length == 1500
    assert after(0.4, 0.6, 1.0, max_change=1.5).length == 667


# ---- rows that were drawn with an older length --------------------------------------------------------------------


def test_the_rule_multiplies_the_length_that_the_rows_were_drawn_with() -> None:
    """Newest length 2000, rows drawn with 1000 and seen at 0.25 after 0.5: 1000 * 0.5 / 0.25."""
    controller = AdaptiveGuidance(initial=1000)
    controller.observe(0.5)
    controller.length = 2000
    controller.observe(0.25, used_length=1000)
    assert controller.length == 2000
    controller.observe(0.375, used_length=1000.5)  # (0.5 + 0.25) / 2 is 0.375: what the rows had is right, rounded
    assert controller.length == 1001
    controller.observe(0.0, used_length=500)
    assert controller.length == 1001


def test_largest_change_is_one_of_the_newest_length() -> None:
    controller = AdaptiveGuidance(initial=1000, max_change=1.5)
    controller.observe(0.5)
    controller.length = 2000
    controller.observe(0.5, used_length=1000)
    assert controller.length == 1333


@pytest.mark.parametrize("used", [-1.0, float("nan")])
def test_impossible_used_length_is_refused(used: float) -> None:
    with pytest.raises(ValueError, match="used_length"):
        AdaptiveGuidance().observe(0.5, used_length=used)


def spread(lag: int, seed: int, with_used: bool, steps: int = 200, rows: int = 768) -> float:
    """std / mean of the length where a step trains on rows that were drawn ``lag`` steps before, and accuracy rises
    with their length: 0.05 without guidance, 0.85 at 3,072 tokens."""
    rng, controller = np.random.default_rng(seed), AdaptiveGuidance(initial=1024)
    waiting, lengths = [1024] * (lag + 1), []
    for _ in range(steps):
        drawn_with = waiting.pop(0)
        accuracy = rng.binomial(rows, 0.05 + 0.8 * drawn_with / 3072) / rows
        controller.observe(accuracy, used_length=drawn_with if with_used else None)
        waiting.append(controller.length)
        lengths.append(controller.length)
    return float(np.std(lengths) / np.mean(lengths))


@pytest.mark.parametrize("lag", [1, 2, 4])
def test_length_is_steady_where_rows_are_drawn_ahead(lag: int) -> None:
    """What swings when the newest length is multiplied does not when the rows' own is."""
    assert max(spread(lag, seed, with_used=True) for seed in range(5)) <= 0.10
    assert min(spread(lag, seed, with_used=False) for seed in range(5)) > 0.45


def test_without_a_lag_both_are_the_same_rule() -> None:
    assert spread(0, 3, with_used=True) == spread(0, 3, with_used=False) <= 0.10


# ---- the authors' code --------------------------------------------------------------------------------------------


def authors_cycle(accuracies: list[float], length: int, most: int = 3072) -> list[int]:
    """Written after papers.md 4.2: the length after each step."""
    lengths, buffer = [], []
    for step, accuracy in enumerate(accuracies):
        if step % 3 == 0:
            buffer = [accuracy]
        elif step % 3 == 1:
            buffer.append(accuracy)
        else:
            average = (buffer[0] + buffer[1]) / 2
            if accuracy > 0 and average > 0:
                if accuracy < average:
                    length = int(min(length * average / accuracy, most))
                elif accuracy > average:
                    length = int(max(int(length * average / accuracy), 1))
        lengths.append(length)
    return lengths


@pytest.mark.slow
@given(st.lists(st.one_of(st.just(0.0), st.floats(0.01, 1.0)), max_size=40), st.integers(1, 3072))
def test_every_third_is_the_authors_cycle(accuracies: list[float], initial: int) -> None:
    controller = AdaptiveGuidance(initial=initial, averaging="disjoint_windows")
    found = []
    for accuracy in accuracies:
        controller.observe(accuracy)
        found.append(controller.length)
    assert found == authors_cycle(accuracies, initial)


def test_an_accuracy_that_stays_keeps_the_length_to_the_token() -> None:
    """447 * a / a is 446.99..., which truncation would turn into 446."""
    controller = AdaptiveGuidance(initial=447, averaging="disjoint_windows")
    for _ in range(3):
        controller.observe(0.1536459156288379)
    assert controller.length == 447


def test_the_authors_cycle_by_hand() -> None:
    assert authors_cycle([0.4, 0.6, 0.25, 0.5, 0.5, 1.0], 1000) == [1000, 1000, 2000, 2000, 2000, 1000]


@given(st.lists(st.floats(0, 1), max_size=60), st.integers(1, 500), st.integers(500, 4000))
def test_length_stays_in_bounds(accuracies: list[float], low: int, high: int) -> None:
    controller = AdaptiveGuidance(initial=low, min_length=low, max_length=high)
    for accuracy in accuracies:
        controller.observe(accuracy)
        assert low <= controller.length <= high and isinstance(controller.length, int)


@pytest.mark.parametrize("kind", [AdaptiveGuidance, AdditiveGuidance])
@given(before=st.lists(st.floats(0, 1), max_size=6), later=st.lists(st.floats(0, 1), max_size=6))
def test_resumed_length_continues_exactly(kind, before: list[float], later: list[float]) -> None:
    controller, resumed = kind(), kind()
    for accuracy in before:
        controller.observe(accuracy)
    resumed.load_state_dict(controller.state_dict())
    for accuracy in later:
        controller.observe(accuracy)
        resumed.observe(accuracy)
        assert resumed.length == controller.length


def additive(*accuracies: float, **settings) -> list[int]:
    controller, lengths = AdditiveGuidance(**{"initial": 1024, **settings}), []
    for accuracy in accuracies:
        controller.observe(accuracy)
        lengths.append(controller.length)
    return lengths


def test_additive_rule_by_hand() -> None:
    """Above the average of the last two, its own included: shorter. Else longer, a tie too."""
    assert additive(0.1, 0.3, 0.25, 0.2, 0.3) == [1280, 1024, 1280, 1536, 1280]
    assert additive(*[0.0] * 6) == [1280, 1536, 1792, 2048, 2304, 2560]
    assert additive(0.2, 0.8, 0.4, window=3) == [1280, 1024, 1280]  # 0.4 against 1.4 / 3
    assert additive(*[0.1] * 4, window=3, delta=1) == [1025, 1026, 1027, 1028]  # 0.1 * 3 > 0.1 + 0.1 + 0.1 in floats


def test_additive_rule_keeps_to_its_bounds_and_starts_from_what_the_rows_had() -> None:
    assert additive(0.5, 0.5, 0.5, initial=2700) == [2956, 3072, 3072]
    assert additive(0.5, 0.9, 0.95, initial=300, min_length=200) == [556, 300, 200]
    controller = AdditiveGuidance(initial=1024, delta=100)
    controller.observe(0.5, used_length=500.5)
    assert controller.length == 601


def test_additive_state_of_an_earlier_version_continues() -> None:
    """It held the same keys: the last two accuracies, the newest one last."""
    controller = AdditiveGuidance(delta=100)
    controller.load_state_dict({"length": 1000, "previous": [0.9, 0.5]})
    controller.observe(0.6)
    assert controller.length == 900


def test_decays_at_start_middle_and_end() -> None:
    assert [LinearDecay(3072, 100).at(step) for step in (1, 51, 101, 121)] == [3072, 1536, 0, 0]
    assert [ConcaveDecay(3072, 100, 2.0).at(step) for step in (1, 51, 101, 121)] == [3072, 768, 0, 0]
    assert [StepwiseDecay(3072, 0.5, 50).at(step) for step in (1, 50, 51, 101)] == [3072, 3072, 1536, 768]
    assert [Constant(500).at(step) for step in (1, 51, 101)] == [500] * 3


@pytest.mark.parametrize(
    ("alpha", "group", "sessions"),
    [
        (0.25, 12, 3),
        (0.75, 12, 9),
        (0.14, 7, 1),
        (0.57, 7, 4),
        (1.0, 12, 12),
        (0.0, 12, 0),
        (0.01, 4, 1),
        (0.125, 4, 1),
    ],
)
def test_guided_sessions_of_the_papers_settings(alpha: float, group: int, sessions: int) -> None:
    assert guided_sessions(alpha, group) == sessions


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan")])
def test_alpha_outside_zero_to_one_is_refused(alpha: float) -> None:
    with pytest.raises(ConfigError, match=f"alpha={alpha}"):
        guided_sessions(alpha, 8)


@pytest.mark.parametrize("accuracy", [-0.1, 1.1, float("nan")])
def test_accuracy_out_of_range_is_refused(accuracy: float) -> None:
    with pytest.raises(ValueError, match=f"accuracy={accuracy}"):
        AdaptiveGuidance().observe(accuracy)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AdaptiveGuidance(initial=4000), "initial=4000.*max_length=3072"),
        (lambda: AdaptiveGuidance(window=0), "window=0"),
        (lambda: AdaptiveGuidance(window=3, averaging="disjoint_windows"), "window=3"),
        (lambda: AdaptiveGuidance(max_change=1.0), "max_change=1.0"),
        (lambda: AdditiveGuidance(delta=0), "delta=0"),
        (lambda: AdditiveGuidance(window=1), "window=1"),
        (lambda: LinearDecay(100, 0), "total_steps=0"),
        (lambda: ConcaveDecay(100, 10, 1.0), "power=1.0"),
        (lambda: StepwiseDecay(100, 1.0, 5), "gamma=1.0"),
        (lambda: StepwiseDecay(100, 0.5, 0), "every=0"),
        (lambda: Constant(-1), "initial=-1"),
    ],
)
def test_impossible_settings_are_refused(make, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


def test_state_of_another_controller_is_refused() -> None:
    with pytest.raises(StateMismatch, match="wanted length, previous"):
        AdaptiveGuidance().load_state_dict({"beta": 1})
