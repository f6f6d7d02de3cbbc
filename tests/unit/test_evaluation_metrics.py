"""pass@k to the last bit, votes, standard errors."""

import math
import random
from fractions import Fraction

import numpy as np
import pytest

from s2l_ext.evaluation import pass_at_k
from s2l_ext.evaluation.intervals import bootstrap_tail, paired_interval, paired_intervals, t_quantile
from s2l_ext.evaluation.metrics import majority_correct, standard_error, summarize
from s2l_ext.utils.pass_at_k import ks_up_to, validation_pass_at_k


@pytest.mark.slow
def test_equals_exact_combinatorics_for_every_count() -> None:
    for n in range(1, 65):
        for c in range(n + 1):
            for k in range(1, n + 1):
                exact = 1 - Fraction(math.comb(n - c, k), math.comb(n, k))
                assert pass_at_k(n, c, k) == float(exact)


def test_pass_at_k_of_a_validation_by_hand() -> None:
    """a: 1 and 3 right of 4, pass@2 (1/2 + 1) / 2, pass@4 1; b: 1 right of 2, and one that failed of 2."""
    sources = ["a"] * 8 + ["b"] * 3
    uids = ["p"] * 4 + ["q"] * 4 + ["r", "r", "s"]
    acc = [1.0, 0.0, 0.0, 0.0, 1, 1, True, 0, 0, 1, 0]
    planned = {("a", "p"): 4, ("a", "q"): 4, ("b", "r"): 2, ("b", "s"): 2}
    rewards = {"reward": acc, "score": acc, "acc": acc}
    found = validation_pass_at_k(sources, uids, rewards, planned)
    assert found == {
        "s2l/val/a/pass@1": pytest.approx((1 / 4 + 3 / 4) / 2),
        "s2l/val/a/pass@2": pytest.approx((1 / 2 + 1) / 2),
        "s2l/val/a/pass@4": 1.0,
        "s2l/val/b/pass@1": pytest.approx((1 / 2 + 0) / 2),
        "s2l/val/b/pass@2": pytest.approx(1 / 2),
    }
    assert ks_up_to(6) == [1, 2, 4, 6] and ks_up_to(8) == [1, 2, 4, 8] and ks_up_to(1) == [1]
    assert set(validation_pass_at_k(["c"] * 6, ["p"] * 6, {"acc": [1] * 6, "score": []}, {})) == {
        f"s2l/val/c/pass@{k}" for k in (1, 2, 4, 6)
    }


def test_a_problem_of_which_every_session_failed_counts_as_wrong() -> None:
    planned = {("a", "p"): 2, ("a", "q"): 2}
    found = validation_pass_at_k(["a", "a"], ["p", "p"], {"acc": [1, 1], "score": [1, 1]}, planned)
    assert found == {"s2l/val/a/pass@1": 0.5, "s2l/val/a/pass@2": 0.5}


@pytest.mark.parametrize(
    ("rewards", "why"),
    [
        ({"reward": [1, 0]}, "no acc"),
        ({"reward": [1, 0], "acc": [1, 0]}, "a bare reward, which verl records as acc"),
        ({"reward": [1, 0], "acc": [1, 0.3], "score": [1, 0]}, "a shaped acc"),
        ({"reward": [1, 0], "acc": [1, None], "score": [1, 0]}, "not every sample"),
    ],
)
def test_no_pass_at_k_without_a_verdict_on_every_sample(rewards: dict, why: str) -> None:
    assert validation_pass_at_k(["a", "a"], ["p", "p"], rewards, {("a", "p"): 2}) == {}, why


def test_one_sample_a_problem_adds_nothing() -> None:
    assert validation_pass_at_k(["a"], ["p"], {"acc": [1], "score": [1]}, {("a", "p"): 1}) == {}


def test_is_what_drawing_without_replacement_gives() -> None:
    rng, n, c, k, rounds = random.Random(0), 10, 3, 4, 20_000
    marks = [True] * c + [False] * (n - c)
    found = sum(any(rng.sample(marks, k)) for _ in range(rounds)) / rounds
    assert found == pytest.approx(pass_at_k(n, c, k), abs=4 * math.sqrt(0.25 / rounds))


def test_is_unbiased_where_the_bootstrap_of_verl_is_low() -> None:
    """One of four right: pass@4 of these four is 1, where drawing with replacement gives 0.684."""
    assert pass_at_k(4, 1, 4) == 1.0
    rng, rate, k = np.random.default_rng(0), 0.3, 4
    estimates = [pass_at_k(8, int(c), k) for c in rng.binomial(8, rate, size=20_000)]
    assert np.mean(estimates) == pytest.approx(1 - (1 - rate) ** k, abs=0.01)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((4, 2, 5), ["k=5", "num_samples=4"]), ((4, 5, 1), ["num_correct=5"]), ((0, 0, 1), ["0"]), ((4, 1, 0), ["k=0"])],
)
def test_impossible_numbers_are_refused(arguments: tuple[int, int, int], words: list[str]) -> None:
    with pytest.raises(ValueError) as refusal:
        pass_at_k(*arguments)
    assert all(word in str(refusal.value) for word in words)


@pytest.mark.parametrize(
    ("answers", "correct", "expected"),
    [
        (["7", "8", "8"], [True, False, False], False),
        (["8", "7", "7"], [False, True, True], True),
        (["7", "8"], [True, False], True),
        (["8", "7"], [False, True], False),
        ([None, None, "7"], [False, False, True], True),
        ([None, None], [False, False], False),
    ],
)
def test_votes(answers: list[str | None], correct: list[bool], expected: bool) -> None:
    assert majority_correct(answers, correct) is expected


def test_standard_error_is_over_problems() -> None:
    assert standard_error([0.0, 1.0, 1.0, 0.0]) == pytest.approx(np.std([0, 1, 1, 0], ddof=1) / 2)
    assert standard_error([1.0]) is None


def problem(correct: list[bool], answers: list[str | None] | None = None) -> dict:
    return {
        "num_samples": len(correct),
        "num_correct": sum(correct),
        "num_truncated": 1,
        "lengths": list(range(1, len(correct) + 1)),
        "answers": answers or [None] * len(correct),
        "correct": correct,
        "scores": [float(each) for each in correct],
    }


def test_summary_by_hand() -> None:
    rows = [problem([True, False], ["1", "2"]), problem([False, False], ["3", "3"])]
    summary = summarize(rows, [1, 2])
    assert summary["accuracy"] == 0.25
    assert summary["standard_error"] == pytest.approx(0.25)
    assert summary["pass_at_k"] == {"1": 0.25, "2": 0.5}
    assert summary["pass_at_k_standard_error"] == {"1": pytest.approx(0.25), "2": pytest.approx(0.5)}
    assert summary["maj_at_k"] == {"1": 0.5, "2": 0.5}
    assert summary["maj_at_k_standard_error"] == {"1": pytest.approx(0.5), "2": pytest.approx(0.5)}
    assert summary["mean_length"] == 1.5
    assert summary["truncation_rate"] == 0.5
    assert (summary["num_problems"], summary["num_samples"], summary["num_tokens"]) == (2, 4, 6)


def test_no_answers_no_votes() -> None:
    summary = summarize([problem([True, True])], [1])
    assert summary["maj_at_k"] is None and summary["maj_at_k_standard_error"] is None
    assert summary["pass_at_k_standard_error"] == {"1": None}


def test_errors_of_length_and_truncation_are_over_problems() -> None:
    rows = [problem([True, False]), problem([True, False]) | {"lengths": [5, 6], "num_truncated": 2}]
    summary = summarize(rows, [1])
    assert (summary["mean_length"], summary["truncation_rate"]) == (3.5, 0.75)
    assert summary["mean_length_standard_error"] == pytest.approx(2.0)
    assert summary["truncation_rate_standard_error"] == pytest.approx(0.25)


def test_measures_are_resampled_together_and_as_one_alone() -> None:
    first = np.random.default_rng(2).normal(size=40)
    ends = paired_intervals(np.stack([first, 2 * first], axis=1), seed=3, resamples=500)
    assert ends[:, 1] == pytest.approx(2 * ends[:, 0])
    assert tuple(ends[:, 0]) == pytest.approx(paired_interval(first, seed=3, resamples=500))


def test_quantiles_of_students_t_as_printed_in_tables() -> None:
    for degrees, t in ((1, 12.7062), (2, 4.3027), (3, 3.1824), (4, 2.7764), (29, 2.0452), (120, 1.9799)):
        assert t_quantile(0.95, degrees) == pytest.approx(t, abs=5e-5)


@pytest.mark.slow
def test_few_problems_get_a_wider_interval() -> None:
    """30: sqrt(30/29) * 2.04523 = 2.08019 standard deviations of a normal distribution, not 1.95996."""
    assert bootstrap_tail(30) == pytest.approx(0.018753, abs=1e-5)
    assert bootstrap_tail(100_000) == pytest.approx(0.025, abs=1e-5)
    assert bootstrap_tail(1) == 0.0


@pytest.mark.slow
@pytest.mark.parametrize(("problems", "samples"), [(15, 1), (30, 1), (30, 4)])
def test_coverage_with_few_problems(problems: int, samples: int) -> None:
    """Success rates from Beta(0.8, 0.8); a plain percentile bootstrap covers 0.905, 0.931 and 0.936."""
    rng, rounds, gain = np.random.default_rng(0), 2000, 0.54 * (0.8 * 0.8) / (1.6 * 2.6)  # E p(1 - p) of the Beta
    covered = 0
    for seed in range(rounds):
        rate = rng.beta(0.8, 0.8, problems)
        before, after = (rng.binomial(samples, p) / samples for p in (rate, rate + 0.54 * rate * (1 - rate)))
        low, high = paired_interval(after - before, seed, resamples=1000)
        covered += low <= gain <= high
    assert covered / rounds == pytest.approx(0.95, abs=0.018)


def test_paired_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    covered = 0
    for seed in range(100):
        low, high = paired_interval(rng.normal(0.1, 1.0, size=60), seed, resamples=300)
        covered += low <= 0.1 <= high
    assert 88 <= covered <= 100
