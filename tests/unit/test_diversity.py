"""Diversity of samples against hand-computed values: answers, Self-BLEU, edits, prefixes, curves, series, intervals."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.studies.diversity.curves import (
    Bootstrap,
    half_position,
    pass_curves,
    recommend,
)
from s2l_ext.studies.diversity.models import autocorrelation, lag_sums, position_starts
from s2l_ext.studies.diversity.text import distinct_answer_ratio, edit_diversity, prefix_match, self_bleu

ROWS = st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=6).map(np.array), min_size=2, max_size=5)


# ---- text ---------------------------------------------------------------------------------------------------------


def test_a_sample_without_an_answer_adds_no_distinct_one() -> None:
    assert distinct_answer_ratio(["1", "1", None, "2"]) == 0.5
    assert distinct_answer_ratio([None, ""]) == 0.0


def test_self_bleu_by_hand() -> None:
    # Precisions 3/4, 2/3, 1/2 and, smoothed, 1/2 of the one 4-gram; lengths are equal, so no penalty.
    assert self_bleu(["a b c d", "a b c e"]) == pytest.approx((3 / 4 * 2 / 3 * 1 / 2 * 1 / 2) ** (1 / 4))
    assert self_bleu(["a b c d e"] * 3) == pytest.approx(1.0)
    # The third is like neither of the others, which are equal: (1 + 1 + x) / 3 with x small.
    assert 2 / 3 < self_bleu(["a b c d", "a b c d", "w x y z"]) < 0.75


def test_empty_texts_are_alike() -> None:
    assert self_bleu(["", " "]) == 1.0
    assert self_bleu(["", "a b c d"]) == 0.0


def test_edit_diversity_by_hand() -> None:
    rows = [np.array(row) for row in ([1, 2, 3, 4], [1, 2, 4], [5])]
    assert edit_diversity(rows) == pytest.approx((1 / 4 + 1 + 1) / 3)


def test_prefix_match_by_hand() -> None:
    rows = [np.array(row) for row in ([1, 2, 3], [1, 2, 4], [1, 5])]
    assert prefix_match(rows, 4).tolist() == pytest.approx([1, 1 / 3, 0, 0])
    assert prefix_match([np.array([1, 2])] * 2, 3).tolist() == [1, 1, 1]
    assert prefix_match([np.array([1]), np.array([1, 2])], 2).tolist() == [1, 0]


@given(ROWS)
@settings(deadline=None)
def test_prefix_match_is_the_share_of_pairs(rows: list[np.ndarray]) -> None:
    shares = prefix_match(rows, 7)
    expected = [np.mean([list(a[:t]) == list(b[:t]) for a, b in combinations(rows, 2)]) for t in range(1, 8)]
    assert shares == pytest.approx(np.array(expected))
    assert (np.diff(shares) <= 1e-12).all()


@given(ROWS)
@settings(max_examples=25, deadline=None)
def test_measures_of_pairs_do_not_depend_on_order(rows: list[np.ndarray]) -> None:
    texts = [" ".join(map(str, row)) for row in rows]
    assert edit_diversity(rows) == pytest.approx(edit_diversity(rows[::-1]))
    assert self_bleu(texts) == pytest.approx(self_bleu(texts[::-1]))
    assert 0 <= edit_diversity(rows) <= 1 and 0 <= self_bleu(texts) <= 1 + 1e-9


# ---- curves -------------------------------------------------------------------------------------------------------


def test_curves_of_constructed_counts() -> None:
    learner = pass_curves([4, 0], 4)  # solves one problem always, the other never: 1/2 at every k
    explorer = pass_curves([1, 1], 4)  # one of four right on both: k / 4
    assert learner.mean(axis=0).tolist() == [0.5] * 4
    assert explorer.mean(axis=0).tolist() == [0.25, 0.5, 0.75, 1.0]


def test_half_position() -> None:
    assert half_position(np.array([1.0, 0.5, 0.4, 0.1])) == 3
    assert math.isnan(half_position(np.array([1.0, 0.5])))


def curves_of(**right: list[int]) -> dict[str, np.ndarray]:
    return {name.replace("_at_", "@"): pass_curves(counts, 4) for name, counts in right.items()}


def recommended(curves: dict[str, np.ndarray], explorers: list[str], noise: str | None = None):
    return recommend(curves, "large", explorers, noise, Bootstrap(len(curves["large"])))


def test_two_problems_recommend_nobody() -> None:
    found = recommended(curves_of(small=[1] * 2, large=[0] * 2), ["small"])
    assert found["explorer"] is None and not found["clear"] and "fewer than 6 problems" in found["sentence"]


@pytest.mark.parametrize(("differ", "explorer"), [(5, None), (6, "small")])
def test_problems_that_do_not_differ_are_none_for_a_verdict(differ: int, explorer: str | None) -> None:
    found = recommended(curves_of(small=[1] * 12, large=[0] * differ + [1] * (12 - differ)), ["small"])
    assert found["explorer"] == explorer and found["clear"] is bool(explorer)
    assert ("fewer than 6 problems differ" in found["sentence"]) is not bool(explorer)


def test_a_clear_winner_is_recommended_with_its_numbers() -> None:
    curves = curves_of(small=[1] * 40, medium=[0] * 30 + [1] * 10, large=[4] * 10 + [0] * 30)
    found = recommended(curves, ["medium", "small"], None)
    assert (found["explorer"], found["clear"]) == ("small", True)
    assert found["sentence"].startswith("Use small: pass@4 1.000 against 0.250 of large, +0.750 [+0.6")


def test_equal_explorers_are_no_winner_though_better_than_the_learner() -> None:
    curves = curves_of(small=[1] * 40, medium=[2] * 39 + [0], large=[4] * 10 + [0] * 30)
    found = recommended(curves, ["medium", "small"], None)
    assert found["explorer"] is None and not found["clear"]
    assert "No clear winner: small" in found["sentence"] and "not clearly better than medium" in found["sentence"]


def test_an_interval_that_holds_zero_is_no_winner() -> None:
    found = recommended(curves_of(small=[1, 1, 0, 0] * 5, large=[0, 1, 1, 0] * 5), ["small"], None)
    assert found["explorer"] is None and not found["clear"] and "the interval holds 0" in found["sentence"]


def test_problems_that_the_learner_solves_say_nothing() -> None:
    found = recommended(curves_of(small=[1] * 9, large=[2] * 9), ["small"], None)
    assert found["explorer"] is None and "the learner solves every problem; take harder ones" in found["sentence"]


def test_a_better_learner_needs_no_explorer() -> None:
    found = recommended(curves_of(small=[0] * 40, large=[1] * 40), ["small"], None)
    assert found["explorer"] is None and found["clear"] and found["sentence"].startswith("None of them: small")


def test_noise_that_does_as_well_is_said() -> None:
    curves = curves_of(small=[1] * 40, large_at_1=[2] * 39 + [0], large=[0] * 40)
    assert "noise in the tokens may do as well" in recommended(curves, ["small"], "large@1")["sentence"]
    curves = curves_of(small=[1] * 40, large_at_1=[0] * 40, large=[0] * 40)
    sentence = recommended(curves, ["small"], "large@1")["sentence"]
    assert "over large@1 +1.000" in sentence and "as well" not in sentence


# ---- series -------------------------------------------------------------------------------------------------------


def test_lag_sums_by_hand() -> None:
    found = lag_sums([np.array([1.0, -1.0, 1.0, -1.0])], 0.0, 2)
    assert found.products_L.tolist() == [-3.0, 2.0] and found.counts_L.tolist() == [3, 2]
    # Two different tokens of the row: (0² - 4) / (4 * 3) on average.
    assert found.shuffled_L.tolist() == pytest.approx([-1.0, -2 / 3])
    assert (found.squares, found.tokens) == (4.0, 4)
    as_it_is, shuffled = autocorrelation([found, found], Bootstrap(2))
    assert as_it_is[0].tolist() == [-1.0, 1.0] and shuffled[0].tolist() == pytest.approx([-1 / 3, -1 / 3])


def test_autocorrelation_of_a_known_process() -> None:
    rng, rho = np.random.default_rng(0), 0.8
    rows = []
    for _ in range(200):
        noise = rng.normal(size=300)
        row = [noise[0] / math.sqrt(1 - rho**2)]
        for value in noise[1:]:
            row.append(rho * row[-1] + value)
        rows.append(np.array(row))
    mean = float(np.concatenate(rows).mean())
    as_it_is, shuffled = autocorrelation([lag_sums(rows[i : i + 4], mean, 5) for i in range(0, 200, 4)], Bootstrap(50))
    assert as_it_is[0] == pytest.approx(rho ** np.arange(1, 6), abs=0.02)
    assert abs(shuffled[0, 0]) < 0.03
    low, high = Bootstrap(50).point(as_it_is[:, 0])["ci95"]
    assert low < rho < high and high - low < 0.03


def test_rows_that_differ_as_a_whole_are_not_correlated_in_time() -> None:
    rng = np.random.default_rng(1)
    rows = [rng.normal() + rng.normal(size=rng.integers(20, 80)) for _ in range(400)]
    mean = float(np.concatenate(rows).mean())
    as_it_is, shuffled = autocorrelation([lag_sums(rows[i : i + 4], mean, 3) for i in range(0, 400, 4)], Bootstrap(100))
    assert as_it_is[0] == pytest.approx([0.5] * 3, abs=0.07)
    low, high = Bootstrap(100).point(as_it_is[:, 0] - shuffled[:, 0])["ci95"]
    assert low <= 0 <= high


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=5))
@settings(deadline=None)
def test_random_order_is_the_mean_over_all_orders(values: list[float]) -> None:
    from itertools import permutations

    found = lag_sums([np.array(values)], 0.0, 2)
    for lag in (1, 2):
        every = [sum(o[t] * o[t + lag] for t in range(len(o) - lag)) for o in permutations(values)]
        assert found.shuffled_L[lag - 1] == pytest.approx(np.mean(every), abs=1e-9)


def test_rows_of_one_token_and_constant_rows_give_nothing() -> None:
    as_it_is, shuffled = autocorrelation([lag_sums([np.array([1.0])], 0.0, 2)] * 2, Bootstrap(2))
    assert np.isnan(as_it_is).all() and np.isnan(shuffled).all()
    assert np.isnan(autocorrelation([lag_sums([np.zeros(5)], 0.0, 2)] * 2, Bootstrap(2))[0]).all()


# ---- intervals ----------------------------------------------------------------------------------------------------


def test_means_are_ratios_of_sums() -> None:
    bootstrap = Bootstrap(3)
    means = bootstrap.means([6.0, 2.0, math.nan], [2.0, 2.0, 7.0])
    assert means[0] == 2.0 and np.nanmin(means[1:]) == 1.0 and np.nanmax(means[1:]) == 3.0
    assert np.isnan(means[1:]).any()  # a resample of the third problem alone
    assert bootstrap.point(means)["value"] == 2.0 and bootstrap.point(means)["ci95"] == [1.0, 3.0]


def test_an_interval_is_near_the_analytic_one() -> None:
    values = np.random.default_rng(2).normal(size=400)
    bootstrap = Bootstrap(400)
    low, high = bootstrap.point(bootstrap.means(values))["ci95"]
    assert (high - low) == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_few_problems_have_a_wider_interval() -> None:
    """Eight problems: sqrt(8/7) * 2.36462 = 2.52788 standard deviations instead of 1.95996."""
    bootstrap = Bootstrap(8, resamples=40_000)
    means = bootstrap.means(np.arange(8.0))
    low, high = bootstrap.point(means)["ci95"]
    assert (high - low) == pytest.approx(2 * 2.52788 * np.arange(8.0).std() / math.sqrt(8), rel=0.04)


def test_nothing_to_measure_is_none() -> None:
    bootstrap = Bootstrap(2)
    assert bootstrap.point(bootstrap.means([math.nan, math.nan])) == {"value": None, "ci95": None}
    found = bootstrap.curve(bootstrap.means(np.array([[1.0, 0.0], [3.0, 0.0]]), np.array([[1, 0], [1, 0]])))
    assert found == {"values": [2.0, None], "low": [1.0, None], "high": [3.0, None]}


@pytest.mark.parametrize(("longest", "starts"), [(1, [1]), (5, [1, 2, 3, 4]), (24, [1, 2, 3, 4, 6, 8, 12, 16, 24])])
def test_positions_grow_by_halves(longest: int, starts: list[int]) -> None:
    assert position_starts(longest) == starts
