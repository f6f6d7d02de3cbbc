"""Per-source metrics and truncated importance weights, against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from s2l_ext.training.source_statistics import guided_advantage_spread, source_statistics, truncated_importance_weights

ROWS = {
    "source": ["explorer", "learner", "explorer"],
    "reward": [1.0, 0.0, 0.5],
    "acc": [1.0, 0.0, 0.0],
    "response_length": [2, 3, 1],
    "advantage": [0.5, -1.0, 0.1],
    "gen_seconds": [1.5, 4.0, 2.0],
}
MASK = np.array([[1, 1, 0], [1, 1, 1], [1, 0, 0]])
LOG_RATIO = np.log(np.array([[2.0, 0.5, 9.0], [1.0, 1.0, 1.0], [4.0, 9.0, 9.0]]))


def test_statistics_by_hand():
    metrics = source_statistics(**ROWS, log_ratio_B_T=LOG_RATIO, mask_B_T=MASK)
    k3 = [(2 - 1 - math.log(2)), (0.5 - 1 - math.log(0.5)), (4 - 1 - math.log(4))]
    assert metrics == pytest.approx(
        {
            "s2l/source/explorer/rows": 2,
            "s2l/source/explorer/reward_mean": 0.75,
            "s2l/source/explorer/acc_mean": 0.5,
            "s2l/source/explorer/response_length_mean": 1.5,
            "s2l/source/explorer/advantage_mean": 0.3,
            "s2l/source/explorer/advantage_std": 0.2,
            "s2l/source/explorer/tokens": 3,
            "s2l/source/explorer/gen_seconds_sum": 3.5,
            "s2l/source/explorer/gen_seconds_max": 2.0,
            "s2l/source/explorer/is_ratio_mean": 6.5 / 3,
            "s2l/source/explorer/is_ratio_max": 4.0,
            "s2l/source/explorer/kl_sampler_learner_k3": sum(k3) / 3,
            "s2l/source/learner/rows": 1,
            "s2l/source/learner/reward_mean": 0.0,
            "s2l/source/learner/acc_mean": 0.0,
            "s2l/source/learner/response_length_mean": 3.0,
            "s2l/source/learner/advantage_mean": -1.0,
            "s2l/source/learner/advantage_std": 0.0,
            "s2l/source/learner/tokens": 3,
            "s2l/source/learner/gen_seconds_sum": 4.0,
            "s2l/source/learner/gen_seconds_max": 4.0,
            "s2l/source/learner/is_ratio_mean": 1.0,
            "s2l/source/learner/is_ratio_max": 1.0,
            "s2l/source/learner/kl_sampler_learner_k3": 0.0,
        }
    )


def test_spread_of_advantages_by_hand():
    """Population standard deviation: 1, 2, 6 have mean 3 and squares 4, 1, 9; the sample's would be sqrt(14 / 2)."""
    advantage, guided = [1.0, -0.5, 2.0, 6.0, 9.0], [True, False, True, True, False]
    found = guided_advantage_spread(advantage, guided, [False, True, False, False, False])
    expected = {"s2l/guidance/advantage_std_guided": math.sqrt(14 / 3), "s2l/guidance/advantage_std_unguided": 0.0}
    assert found == pytest.approx(expected)
    assert guided_advantage_spread([1.0], [False], [False]) == {}
    three = {**ROWS, "source": ["learner"] * 3, "advantage": [1.0, 2.0, 6.0]}
    assert source_statistics(**three)["s2l/source/learner/advantage_std"] == pytest.approx(math.sqrt(14 / 3))


def test_source_without_rows_gives_rows_only():
    metrics = source_statistics(**{**ROWS, "source": ["learner"] * 3}, log_ratio_B_T=LOG_RATIO, mask_B_T=MASK)
    assert [key for key in metrics if "/explorer/" in key] == ["s2l/source/explorer/rows"]
    assert metrics["s2l/source/explorer/rows"] == 0


def test_without_accuracy_and_log_ratio_those_metrics_are_absent():
    metrics = source_statistics(**{**ROWS, "acc": None})
    assert not [key for key in metrics if "acc_mean" in key or "sampler" in key]


def test_source_whose_rows_are_all_masked_has_no_sampler_metrics():
    mask = MASK * np.array([[0], [1], [0]])
    metrics = source_statistics(**ROWS, log_ratio_B_T=LOG_RATIO, mask_B_T=mask)
    assert "s2l/source/explorer/kl_sampler_learner_k3" not in metrics
    assert "s2l/source/learner/kl_sampler_learner_k3" in metrics


def test_extreme_ratio_stays_finite():
    metrics = source_statistics(**ROWS, log_ratio_B_T=np.full((3, 3), 1e4), mask_B_T=MASK)
    assert metrics["s2l/source/explorer/is_ratio_max"] == pytest.approx(math.exp(20))
    assert math.isfinite(metrics["s2l/source/explorer/kl_sampler_learner_k3"])


def test_unknown_source_is_named():
    with pytest.raises(ValueError, match="teacher"):
        source_statistics(**{**ROWS, "source": ["explorer", "learner", "teacher"]})


def test_log_ratio_needs_its_mask():
    with pytest.raises(ValueError, match="mask_B_T"):
        source_statistics(**ROWS, log_ratio_B_T=LOG_RATIO)


def test_weights_by_hand():
    weights, stats = truncated_importance_weights(LOG_RATIO, MASK, [True, False, True], cap=2.0)
    np.testing.assert_allclose(weights, [[2.0, 0.5, 1.0], [1.0, 1.0, 1.0], [2.0, 1.0, 1.0]])
    assert stats == pytest.approx(
        {
            "s2l/source/explorer/is_weight_mean": 1.5,
            "s2l/source/explorer/is_clamped_fraction": 1 / 3,
            "s2l/source/learner/is_weight_mean": 1.0,
            "s2l/source/learner/is_clamped_fraction": 0.0,
        }
    )


def test_weights_without_explorer_rows_report_the_learner_only():
    weights, stats = truncated_importance_weights(LOG_RATIO, MASK, [False] * 3)
    assert (weights == 1.0).all()
    assert not [key for key in stats if "explorer" in key]


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_cap_must_be_positive(cap):
    with pytest.raises(ValueError, match="is_cap"):
        truncated_importance_weights(LOG_RATIO, MASK, [True] * 3, cap=cap)


@st.composite
def batches(draw):
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    log_ratio = draw(hnp.arrays(float, shape, elements=st.floats(-1e6, 1e6)))
    mask = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))
    return log_ratio, mask, draw(hnp.arrays(bool, shape[0]))


@given(batches(), st.floats(1e-3, 100))
def test_weight_bounds_and_learner_rows(batch, cap):
    log_ratio, mask, is_explorer = batch
    weights, _ = truncated_importance_weights(log_ratio, mask, is_explorer, cap=cap)
    assert (weights[~is_explorer] == 1.0).all()
    on_explorer = weights[(mask > 0) & is_explorer[:, None]]
    assert ((on_explorer > 0) & (on_explorer <= cap)).all()
    assert (weights[mask == 0] == 1.0).all()


@given(batches(), st.sampled_from([np.nan, np.inf, -np.inf, 7.0]))
def test_masked_tokens_are_not_read(batch, poison):
    log_ratio, mask, is_explorer = batch
    poisoned = np.where(mask > 0, log_ratio, poison)
    rows = {key: np.zeros(len(mask)) for key in ("reward", "acc", "response_length", "advantage", "gen_seconds")}
    source = np.where(is_explorer, "explorer", "learner")
    a, stats_a = truncated_importance_weights(log_ratio, mask, is_explorer)
    b, stats_b = truncated_importance_weights(poisoned, mask, is_explorer)
    np.testing.assert_array_equal(a, b)
    assert stats_a == stats_b
    clean = source_statistics(source, **rows, log_ratio_B_T=log_ratio, mask_B_T=mask)
    assert clean == source_statistics(source, **rows, log_ratio_B_T=poisoned, mask_B_T=mask)


@given(batches())
def test_k3_is_never_negative(batch):
    log_ratio, mask, is_explorer = batch
    rows = {key: np.zeros(len(mask)) for key in ("reward", "acc", "response_length", "advantage", "gen_seconds")}
    metrics = source_statistics(
        np.where(is_explorer, "explorer", "learner"), **rows, log_ratio_B_T=log_ratio, mask_B_T=mask
    )
    assert all(value >= 0 for key, value in metrics.items() if key.endswith("kl_sampler_learner_k3"))
