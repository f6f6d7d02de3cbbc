"""Moving averages, their reports, and the chi-square test."""

from __future__ import annotations

import io
import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError
from s2l_ext.methods.curriculum.pass_rates import PassRates
from s2l_ext.report.draws import _upper_tail, chi_square


def with_rates(values):
    rates = PassRates(len(values))
    rates.set_rates(range(len(values)), values)
    return rates


# ---- updates ------------------------------------------------------------------------------------------------------


def test_seven_failures_from_one_half():
    rates = PassRates(3)
    for _ in range(7):
        rates.update([1], [0.0])
    assert rates.rates[1] == pytest.approx(0.2391, abs=5e-5)  # 0.5 * 0.9 ** 7
    assert rates.rates[[0, 2]].tolist() == [0.5, 0.5]
    assert rates.visits.tolist() == [0, 7, 0]


def test_one_visit_moves_a_tenth_of_the_way():
    rates = PassRates(2)
    rates.update([1, 0], [1, 0])
    assert rates.rates.tolist() == pytest.approx([0.45, 0.55])


def test_set_rates_is_no_visit():
    rates = PassRates(2)
    rates.set_rates([1], [0.25])
    assert rates.rates.tolist() == [0.5, 0.25]
    assert rates.visits.tolist() == [0, 0]


def test_no_prompts_are_a_valid_update():
    rates = PassRates(2)
    rates.update([], [])
    assert rates.visits.tolist() == [0, 0]


BAD = [
    ([0, 1], [0.5, math.nan], r"pass_rates\[1\]=nan"),
    ([0, 1], [0.5, 1.5], r"pass_rates\[1\]=1.5"),
    ([0, 1], [-0.1, 0.5], r"pass_rates\[0\]=-0.1"),
    ([0, 3, 0], [0.5, 0.5, 0.5], r"indices\[2\]=0: the same prompt"),
    ([0, 4], [0.5, 0.5], r"indices\[1\]=4: prompts go from 0 to 3"),
    ([-1], [0.5], r"indices\[0\]=-1"),
    ([0, 1], [0.5], r"shape \(2,\).*shape \(1,\)"),
    ([[0]], [[0.5]], r"shape \(1, 1\)"),
    ([0.0], [0.5], "float64"),
    ([True], [0.5], "bool"),
]


@pytest.mark.parametrize("change", ["update", "set_rates"])
@pytest.mark.parametrize(("indices", "values", "message"), BAD)
def test_a_bad_update_names_the_value_and_changes_nothing(change, indices, values, message):
    rates = PassRates(4)
    with pytest.raises(ValueError, match=message):
        getattr(rates, change)(indices, values)
    assert rates.rates.tolist() == [0.5] * 4
    assert rates.visits.tolist() == [0] * 4


@given(
    values=st.lists(st.floats(0, 1), min_size=1, max_size=20),
    bad=st.sampled_from([math.nan, math.inf, -1e-9, 1 + 1e-9]),
    data=st.data(),
)
def test_an_update_is_all_or_nothing(values, bad, data):
    rates = with_rates(values)
    before = rates.state_dict()
    observed = [0.0] * len(values)
    observed[data.draw(st.integers(0, len(values) - 1))] = bad
    with pytest.raises(ValueError, match="pass_rates"):
        rates.update(range(len(values)), observed)
    assert all(np.array_equal(before[name], rates.state_dict()[name]) for name in before)


@given(ema=st.floats(0, 1, exclude_max=True), old=st.floats(0, 1), new=st.floats(0, 1))
def test_rates_stay_in_range_for_any_ema(ema, old, new):
    rates = PassRates(1, ema=ema)
    rates.set_rates([0], [old])
    for value in (new, 1.0, 1.0, 0.0):
        rates.update([0], [value])
        assert 0 <= rates.rates[0] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_prompts": 0}, "num_prompts=0"),
        ({"num_prompts": 2, "ema": 1.0}, "ema=1.0"),
        ({"num_prompts": 2, "ema": math.nan}, "ema=nan"),
    ],
)
def test_impossible_arguments_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PassRates(**arguments)


# ---- reports ------------------------------------------------------------------------------------------------------


def test_histogram_closes_the_last_bin():
    assert with_rates([0.0, 0.04, 0.05, 0.15, 0.5, 0.95, 1.0]).histogram().tolist() == (
        [2, 1, 0, 1] + [0] * 6 + [1] + [0] * 8 + [2]
    )
    multiples = np.arange(21) / 20
    assert with_rates(multiples).histogram().tolist() == [1] * 19 + [2]


@given(
    values=st.lists(st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 1.0])), min_size=1, max_size=60),
    percents=st.lists(st.integers(0, 100), min_size=1, max_size=4),
)
def test_quantiles_equal_numpy(values, percents):
    expected = np.quantile(np.array(values), np.array(percents) / 100, method="inverted_cdf")
    assert with_rates(values).quantiles(percents).tolist() == expected.tolist()


def test_quantiles_over_several_chunks():
    values = np.round(np.random.default_rng(0).beta(0.5, 2, 200_001), 4)
    expected = np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9], method="inverted_cdf")
    assert with_rates(values).quantiles().tolist() == expected.tolist()


def test_visit_counts():
    rates = PassRates(5)
    rates.visits[:] = [0, 1, 1, 3, 9]
    assert rates.visit_counts(limit=3).tolist() == [1, 2, 0, 2]
    assert rates.visit_counts().sum() == 5
    assert rates.visit_counts().shape == (51,)


def test_metrics():
    rates = with_rates([0.0, 0.25, 0.5, 1.0])
    rates.update([3], [1.0])
    metrics = rates.metrics()
    assert metrics["pass_rate_mean"] == pytest.approx(0.4375)
    assert [metrics[f"pass_rate_q{percent}"] for percent in (10, 25, 50, 75, 90)] == [0.0, 0.0, 0.25, 0.5, 1.0]
    assert metrics["never_seen_share"] == 0.75
    assert metrics["visits_mean"] == 0.25
    histogram = [metrics[f"pass_rate_hist/{index:02d}"] for index in range(20)]
    assert sum(histogram) == 1
    assert histogram[10] == 0.25
    assert all(type(value) is float for value in metrics.values())
    json.dumps(metrics)


# ---- state --------------------------------------------------------------------------------------------------------


def test_state_survives_a_file():
    rates = PassRates(6)
    rates.update([5, 2], [1.0, 0.3])
    file = io.BytesIO()
    np.savez(file, **rates.state_dict())
    file.seek(0)
    loaded = PassRates(6)
    loaded.load_state_dict(np.load(file))
    assert loaded.rates.tolist() == rates.rates.tolist()
    assert loaded.visits.tolist() == rates.visits.tolist()


def test_a_saved_state_does_not_follow_later_updates():
    rates = PassRates(2)
    saved = rates.state_dict()
    rates.update([0], [0.0])
    assert saved["rates"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rates": np.full(4, 0.5)}, r"rates: float64 of shape \(4,\).*float64 of shape \(3,\)"),
        ({"visits": np.zeros(3)}, r"visits: float64 of shape.*int32 of shape"),
        ({"rates": np.array([0.5, math.nan, 0.5])}, "damaged"),
        ({"rates": np.array([0.5, 1.1, 0.5])}, "damaged"),
        ({"rates": np.array([0.5, -0.1, 0.5])}, "damaged"),
        ({"visits": np.array([0, -1, 0], np.int32)}, "damaged"),
    ],
)
def test_another_state_is_refused_and_nothing_is_loaded(change, message):
    rates = PassRates(3)
    with pytest.raises(ValueError, match=message):
        rates.load_state_dict({"rates": np.full(3, 0.1), "visits": np.ones(3, np.int32), **change})
    assert rates.rates.tolist() == [0.5] * 3
    assert rates.visits.tolist() == [0] * 3


def test_a_missing_array_is_named():
    with pytest.raises(ValueError, match="no 'visits'"):
        PassRates(3).load_state_dict({"rates": np.full(3, 0.1)})


# ---- chi-square ---------------------------------------------------------------------------------------------------


def test_chi_square_by_hand():
    result = chi_square([44, 56], [1, 1])
    assert result.statistic == pytest.approx(1.44)
    assert result.degrees == 1
    assert result.p == pytest.approx(math.erfc(math.sqrt(0.72)))  # chi-square with 1 degree of freedom
    assert chi_square([10, 20, 30], [1, 2, 3]).p == 1.0


@pytest.mark.parametrize(("statistic", "degrees", "p"), [(3.841, 1, 0.05), (11.345, 3, 0.01), (18.307, 10, 0.05)])
def test_the_upper_tail_is_that_of_the_tables(statistic, degrees, p):
    assert _upper_tail(statistic, degrees) == pytest.approx(p, rel=1e-3)


def test_the_upper_tail_is_torchs():
    for degrees, statistic in ((1, 0.0), (2, 1e-9), (7, 3.0), (300, 250.0), (4999, 5400.0), (5000, 4.0)):
        halves = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
        expected = float(torch.special.gammaincc(halves[0], halves[1]))
        assert _upper_tail(statistic, degrees) == pytest.approx(expected, rel=1e-9)


def test_chi_square_merges_thin_bins():
    assert chi_square([50, 46, 2, 2], [0.5, 0.44, 0.03, 0.03]).degrees == 2  # 3 + 3 expected: a bin of their own
    assert chi_square([50, 48, 1, 1], [0.5, 0.48, 0.01, 0.01]).degrees == 1  # 2 expected: into the smaller other
    assert chi_square([50, 49, 1], [0.5, 0.5, 0]).degrees == 1
    assert chi_square([3], [1]) == (0.0, 0, 1.0)


def test_draws_from_another_distribution_are_rejected():
    drawn = np.random.default_rng(0).integers(0, 20, 1_000_000)
    assert chi_square(np.bincount(drawn), np.ones(20)).p > 1e-4
    assert chi_square(np.bincount(drawn), np.linspace(1, 1.05, 20)).p < 1e-4


@pytest.mark.parametrize(
    ("counts", "mass", "message"),
    [
        ([1, 2], [1], "shape"),
        ([0, 0], [1, 1], "counts"),
        ([1, 1], [1, math.nan], "masses"),
        ([1, 1], [1, math.inf], "masses"),
        ([math.inf, 1], [1, 1], "counts"),
        ([1, -1], [1, 1], "counts"),
    ],
)
def test_chi_square_refuses_nonsense(counts, mass, message):
    with pytest.raises(ValueError, match=message):
        chi_square(counts, mass)
