"""EXPO's Gaussian curriculum against values worked out by hand, exact enumeration, and the chi-square test."""

from __future__ import annotations

import io
import itertools
import json
import math
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum import gaussian as module
from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.pass_rates import CHUNK
from s2l_ext.report.draws import chi_square

PATHS = {"rejection": 0, "keys": 10**9}
"""Values of REJECTION_FROM that force a way of drawing."""


def with_rates(rates, **arguments):
    curriculum = GaussianCurriculum(len(rates), **arguments)
    curriculum.set_pass_rates(range(len(rates)), rates)
    return curriculum


@pytest.fixture(params=PATHS)
def path(request, monkeypatch):
    monkeypatch.setattr(module, "REJECTION_FROM", PATHS[request.param])
    return request.param


# ---- weights ------------------------------------------------------------------------------------------------------


def test_weights_equal_the_paper():
    curriculum = GaussianCurriculum(4)
    assert curriculum.weights([0.5, 0.25, 0.75]).tolist() == pytest.approx([1.0, 0.775, 0.775], abs=5e-4)
    assert curriculum.weights([0.0, 1.0]).tolist() == pytest.approx([math.exp(-1.0204)] * 2, abs=1e-4)
    assert curriculum.weights(0.0) == pytest.approx(0.3604, abs=5e-5)


def test_seven_failures_lower_a_prompts_weight():
    curriculum = GaussianCurriculum(3)
    for _ in range(7):
        curriculum.update([1], [0.0])
    assert curriculum.pass_rates.rates[1] == pytest.approx(0.2391, abs=5e-5)
    assert curriculum.weights(curriculum.pass_rates.rates[1]) == pytest.approx(0.7575, abs=5e-5)
    assert curriculum.probabilities().tolist() == pytest.approx([1 / 2.7575, 0.7575 / 2.7575, 1 / 2.7575], abs=1e-4)


def test_the_start_is_uniform():
    curriculum = GaussianCurriculum(8)
    assert curriculum.probabilities().tolist() == [1 / 8] * 8
    assert curriculum.effective_sample_size() == 8


def test_no_prompt_is_out_of_reach():
    curriculum = with_rates([0.0, 1.0, 0.5], sigma=1e-300)
    assert curriculum.weights([0.0, 0.5]).tolist() == [0.0, 1.0]
    assert (curriculum.probabilities() > 0).all()
    assert sorted(curriculum.draw(3, np.random.default_rng(0)).tolist()) == [0, 1, 2]


# ---- distribution -------------------------------------------------------------------------------------------------


def inclusion_by_successive_sampling(weights, n):
    """Rosen 1972: ``1 - exp(-w t)``, t such that n are drawn; the error is of order 1 / n."""
    low, high = 0.0, 1e6
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-weights * middle).sum() < n else (low, middle)
    return -np.expm1(-weights * low)


@pytest.mark.slow
def test_a_million_draws_follow_the_weights_and_no_others(path):
    rates = np.random.default_rng(0).random(1 << 14)
    curriculum = with_rates(rates, sigma=0.2)
    rng, counts = np.random.default_rng(2), np.zeros(rates.size)
    for _ in range(1000):
        counts[curriculum.draw(1024, rng)] += 1
    assert counts.sum() == 1_024_000
    expected = inclusion_by_successive_sampling(np.exp(-((rates - 0.5) ** 2) / 0.08), 1024)
    bins = (rates * 20).astype(int)
    observed = np.bincount(bins, weights=counts)
    assert chi_square(observed, np.bincount(bins, weights=expected)).p > 1e-4
    assert chi_square(observed, with_rates(rates, sigma=0.205).bucket_mass()).p < 1e-4


def in_order_probabilities(weights, n):
    """Exact probability of every ordered n-tuple when each drawn prompt leaves the urn."""
    exact = {}
    for drawn in itertools.permutations(range(len(weights)), n):
        probability, left = 1.0, float(sum(weights))
        for item in drawn:
            probability *= weights[item] / left
            left -= weights[item]
        exact[drawn] = probability
    return exact


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [0.35, 0.12])
def test_draws_without_replacement_equal_enumeration(path, sigma):
    """Both ways of drawing; at sigma 0.12 proposals need several rounds."""
    rates, draws = [0.0, 0.3, 0.5, 0.55, 1.0], 5000
    curriculum = with_rates(rates, sigma=sigma)
    exact = in_order_probabilities(curriculum.weights(rates), 3)
    position = {drawn: index for index, drawn in enumerate(exact)}
    counts, inclusion = np.zeros(len(exact)), np.zeros(5)
    rng = np.random.default_rng(5)
    for _ in range(draws):
        drawn = curriculum.draw(3, rng)
        counts[position[tuple(drawn.tolist())]] += 1
        inclusion[drawn] += 1
    assert chi_square(counts, list(exact.values())).p > 1e-4
    expected = [sum(p for drawn, p in exact.items() if item in drawn) for item in range(5)]
    assert (inclusion / draws).tolist() == pytest.approx(expected, abs=0.025)
    assert chi_square(counts, np.ones(len(exact))).p < 1e-4


@pytest.mark.slow
def test_two_of_three_prompts_by_hand(path):
    """Weights 4 : 2 : 1. First the second prompt, then the third: 2/7 * 1/5."""
    width = 0.25 * math.sqrt(2 * math.log(2))
    curriculum = with_rates([0.5, 0.5 - width, 0.5 + math.sqrt(2) * width], sigma=0.25)
    by_hand = {(0, 1): 8 / 21, (0, 2): 4 / 21, (1, 0): 8 / 35, (1, 2): 2 / 35, (2, 0): 2 / 21, (2, 1): 1 / 21}
    assert curriculum.probabilities().tolist() == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    rng = np.random.default_rng(9)
    drawn = [tuple(curriculum.draw(2, rng).tolist()) for _ in range(5000)]
    assert chi_square([drawn.count(pair) for pair in by_hand], list(by_hand.values())).p > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("block", [1, 2, 64])
def test_blocks_finish_what_proposals_began(monkeypatch, block):
    """One round of proposals, then blocks: still the exact distribution, also where the last block is not full."""
    monkeypatch.setattr(module, "REJECTION_FROM", 0)
    monkeypatch.setattr(module, "MAX_ROUNDS", 1)
    monkeypatch.setattr(module, "BLOCK", block)
    rates = [0.5, 0.1, 0.12, 0.9, 0.5]
    curriculum = with_rates(rates, sigma=0.35)
    exact = in_order_probabilities(curriculum.weights(rates), 3)
    position = {drawn: index for index, drawn in enumerate(exact)}
    rng, counts = np.random.default_rng(6), np.zeros(len(exact))
    with mock.patch.object(curriculum, "_draw_by_blocks", wraps=curriculum._draw_by_blocks) as blocks:
        for _ in range(5000):
            counts[position[tuple(curriculum.draw(3, rng).tolist())]] += 1
    assert 500 < blocks.call_count < 4500
    assert chi_square(counts, list(exact.values())).p > 1e-4


def test_blocks_follow_every_change_of_the_pass_rates():
    """All weight lies on 10 prompts of 20,000; then on another one, by an update and by a warm start."""
    likely = np.arange(0, 20_000, 2_000)
    curriculum = with_rates(np.where(np.isin(np.arange(20_000), likely), 0.5, 0.0), sigma=0.01)
    rng = np.random.default_rng(0)
    assert set(curriculum.draw(100, rng)[:10]) == set(likely)
    curriculum.update(likely, np.zeros(10))
    curriculum.update([7], [0.5])
    curriculum.set_pass_rates([19_999], [0.5])
    assert curriculum.draw(100, rng)[0] == 19_999
    curriculum.pass_rates.ema = 0.0
    curriculum.update([19_999, 7], [0.0, 0.5])
    assert curriculum.draw(100, rng)[0] == 7


def test_keys_over_several_chunks_take_the_smallest():
    num_prompts = 2 * CHUNK + 9
    curriculum = GaussianCurriculum(num_prompts)
    drawn = curriculum._draw_by_keys(500, np.random.default_rng(7))
    keys = np.random.default_rng(7).standard_exponential(num_prompts)
    assert drawn.tolist() == np.argsort(keys)[:500].tolist()


# ---- any input ----------------------------------------------------------------------------------------------------

RATES = st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=300)


@pytest.mark.slow
@given(
    rates=RATES,
    log_sigma=st.floats(-3, 1),
    seed=st.integers(0, 2**32 - 1),
    share=st.floats(0, 1),
    way=st.sampled_from(sorted(PATHS)),
)
def test_drawn_prompts_are_distinct_and_exist(rates, log_sigma, seed, share, way):
    curriculum = with_rates(rates, sigma=10**log_sigma)
    n = max(1, round(share * len(rates)))
    with mock.patch.object(module, "REJECTION_FROM", PATHS[way]):
        drawn = curriculum.draw(n, np.random.default_rng(seed))
    assert drawn.dtype == np.int64
    assert drawn.shape == (n,)
    assert np.unique(drawn).size == n
    assert 0 <= drawn.min() <= drawn.max() < len(rates)


@pytest.mark.parametrize("sigma", [1e-320, 1e-3, 1e300])
def test_one_prompt_that_holds_all_weight_does_not_hang(path, sigma):
    curriculum = with_rates([0.5] + [0.0] * 9999, sigma=sigma)
    drawn = curriculum.draw(100, np.random.default_rng(0))
    assert np.unique(drawn).size == 100
    assert drawn[0] == 0 or sigma > 1


# ---- errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"num_prompts": 4, "sigma": 0.0}, "sigma=0.0"),
        ({"num_prompts": 4, "sigma": -1.0}, "sigma=-1.0"),
        ({"num_prompts": 4, "sigma": math.nan}, "sigma=nan"),
        ({"num_prompts": 4, "sigma": math.inf}, "sigma=inf"),
        ({"num_prompts": 4, "center": 1.01}, "center=1.01"),
        ({"num_prompts": 4, "center": math.nan}, "center=nan"),
        ({"num_prompts": 4, "ema": 1.0}, "ema=1.0"),
        ({"num_prompts": 4, "ema": -0.1}, "ema=-0.1"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        GaussianCurriculum(**arguments)


@pytest.mark.parametrize("n", [0, -1, 5])
def test_impossible_draws_are_refused(n):
    with pytest.raises(ValueError, match=f"n={n} .*num_prompts=4"):
        GaussianCurriculum(4).draw(n, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("indices", "rates"), [([0, 0], [0.1, 0.1]), ([0, 9], [0.1, 0.1]), ([0, 1], [0.1, math.nan]), ([0], [0.1, 0.2])]
)
def test_a_bad_update_changes_nothing(indices, rates):
    curriculum = GaussianCurriculum(4)
    with pytest.raises(ValueError):
        curriculum.update(indices, rates)
    assert curriculum.pass_rates.rates.tolist() == [0.5] * 4
    assert curriculum.pass_rates.visits.tolist() == [0] * 4


# ---- reports and state --------------------------------------------------------------------------------------------


def test_metrics():
    curriculum = with_rates([0.5, 0.5, 0.0, 1.0])
    metrics = curriculum.metrics()
    low = math.exp(-0.125 / 0.1225)
    assert metrics["effective_sample_size"] == pytest.approx((2 + 2 * low) ** 2 / (2 + 2 * low**2))
    assert metrics["never_seen_share"] == 1.0
    names = {f"pass_rate_hist/{index:02d}" for index in range(20)} | {f"pass_rate_q{q}" for q in (10, 25, 50, 75, 90)}
    assert set(metrics) == names | {"pass_rate_mean", "effective_sample_size", "never_seen_share", "visits_mean"}
    json.dumps(metrics)


def test_bucket_mass_is_the_probability_in_each_bin():
    rates = np.random.default_rng(0).random(1000)
    curriculum = with_rates(rates, sigma=0.1)
    expected = np.bincount((rates * 20).astype(int), weights=curriculum.probabilities(), minlength=20)
    assert curriculum.bucket_mass().tolist() == pytest.approx(expected.tolist())
    assert curriculum.bucket_mass(bins=1).tolist() == [1.0]


SIGMAS = st.sampled_from([0.1, 1e-4])


def through_a_file(state):
    file = io.BytesIO()
    np.savez(file, **state["pass_rates"])
    file.seek(0)
    return {"pass_rates": dict(np.load(file))}


@pytest.mark.slow
@given(seed=st.integers(0, 2**32 - 1), steps=st.integers(0, 4), n=st.sampled_from([3, 40]), sigma=SIGMAS)
def test_a_resumed_run_draws_the_same_prompts(seed, steps, n, sigma):
    """n = 3 goes by proposals, with a narrow sigma by keys after them, 40 by keys; the generator travels as JSON."""
    rng = np.random.default_rng(seed)
    curriculum = with_rates(np.random.default_rng(0).random(400), sigma=sigma)
    for _ in range(steps):
        curriculum.update(curriculum.draw(n, rng), rng.random(n))
    resumed, resumed_rng = GaussianCurriculum(400, sigma=sigma), np.random.default_rng()
    resumed.load_state_dict(through_a_file(curriculum.state_dict()))
    resumed_rng.bit_generator.state = json.loads(json.dumps(rng.bit_generator.state))
    for _ in range(3):
        drawn = curriculum.draw(n, rng)
        assert resumed.draw(n, resumed_rng).tolist() == drawn.tolist()
        curriculum.update(drawn, np.linspace(0, 1, n))
        resumed.update(drawn, np.linspace(0, 1, n))
    assert resumed.metrics() == curriculum.metrics()


def test_another_data_sets_state_is_refused():
    with pytest.raises(ValueError, match=r"\(5,\).*\(4,\)"):
        GaussianCurriculum(4).load_state_dict(GaussianCurriculum(5).state_dict())
    with pytest.raises(ValueError, match="no 'pass_rates'"):
        GaussianCurriculum(4).load_state_dict({})


# ---- ten million prompts ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sigma", "most"),
    [("spread", 0.35, 4096), ("spread", 0.05, 12_288), ("bimodal", 0.35, 8192), ("bimodal", 0.05, 200_000)],
)
def test_ten_million_prompts_take_milliseconds(module_at, monkeypatch, kind, sigma, most):
    """Weights that a step computes, after the first; numpy computes ten million. Then the fastest of 30 against numpy
    in the same process: the machine does other things meanwhile. Where few prompts are likely it took 7 to 17 ms on
    machines that changed their speed within an hour, so only the count says enough there."""
    benchmark = module_at(Path(__file__).parents[2] / "benchmarks" / "curriculum.py")
    curriculum = benchmark.curriculum_of(benchmark.RATES[kind](10**7), sigma)
    measured = benchmark.measure(curriculum, repeats=1)
    fastest = min(benchmark.one_step(curriculum, np.random.default_rng(seed), 1024) for seed in range(30))
    assert max(weights_computed(curriculum, benchmark, seed, monkeypatch) for seed in range(10)) <= most
    obvious = benchmark.Obvious(10**7, sigma)
    obvious.rates[:] = benchmark.RATES[kind](10**7)
    narrow = (kind, sigma) == ("bimodal", 0.05)
    assert (10 if narrow else 50) * fastest < benchmark.one_step(obvious, np.random.default_rng(0), 1024)
    assert narrow or 1e3 * fastest < 2 * benchmark.LIMIT_MS
    assert benchmark.state_bytes(curriculum) / 1e6 + measured.extra_mb < benchmark.LIMIT_MB


def weights_computed(curriculum, benchmark, seed, monkeypatch) -> int:
    sizes = []
    with monkeypatch.context() as patch:
        upstream = curriculum.weights
        patch.setattr(curriculum, "weights", lambda rates: sizes.append(np.size(rates)) or upstream(rates))
        benchmark.one_step(curriculum, np.random.default_rng(seed), 1024)
    return sum(sizes)
