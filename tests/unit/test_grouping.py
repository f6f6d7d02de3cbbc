"""Numbers by source and truncated importance weights: sums where the tokens are, divided where the rows are counted."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tensordict import TensorDict

from s2l_ext.training.source_statistics import guidance_statistics, row_statistics, take_sums, token_statistics
from s2l_ext.training.source_sums import source_sums, truncated_weights

SOURCES = ["explorer", "learner", "explorer"]
LENGTHS = [3, 3, 1]
LOG_RATIO = [[2.0, 0.5, 9.0], [1.0, 1.0, 1.0], [4.0]]
MASK = [[1, 1, 0], [1, 1, 1], [1]]
ADVANTAGE = [[0.5] * 3, [-1.0] * 3, [0.1]]
REWARD = [[0.0, 0.0, 1.0], [0.0] * 3, [0.5]]


def jagged(rows, dtype=torch.float64) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row, dtype=dtype) for row in rows], layout=torch.jagged)


def micro_batch(sources=SOURCES, ratio=LOG_RATIO, mask=MASK, prefix=None, **more) -> TensorDict:
    """Rows whose learner finds each token ``ratio`` times as likely as its sampler did."""
    columns = {
        "old_log_probs": [np.log(row).tolist() for row in ratio],
        "rollout_log_probs": [[0.0] * len(row) for row in ratio],
    }
    columns |= {"advantages": ADVANTAGE, "rm_scores": REWARD, **more}
    nested = {name: jagged(rows) for name, rows in columns.items() if rows is not None}
    fields = {**nested, "response_mask": jagged(mask, torch.int64), "s2l_source": list(sources)}
    fields |= {} if prefix is None else {"s2l_prefix_len": prefix}
    return TensorDict(fields, batch_size=len(sources))


def statistics(batch: TensorDict, sources=SOURCES, cap=None, parts: int = 1) -> dict[str, float]:
    """As the driver finds them: verl gives the mean over ``parts`` workers and mini-batches."""
    sums = source_sums(batch, cap)
    metrics = {f"actor/s2l_sum/{name}": value / (1 if name.endswith("_max") else parts) for name, value in sums.items()}
    found = token_statistics(take_sums(metrics, len(sources)), SimpleNamespace(source_B=list(sources)))
    assert metrics == {}, "taken out of what verl logs"
    return found


@pytest.mark.parametrize("parts", [1, 6])
def test_statistics_by_hand(parts):
    k3 = [(2 - 1 - math.log(2)), (0.5 - 1 - math.log(0.5)), (4 - 1 - math.log(4))]
    assert statistics(micro_batch(), parts=parts) == pytest.approx(
        {
            "s2l/source/explorer/reward_mean": 0.75,
            "s2l/source/explorer/response_length_mean": 1.5,
            "s2l/source/explorer/advantage_mean": 0.3,
            "s2l/source/explorer/advantage_std": 0.2,
            "s2l/source/explorer/is_ratio_mean": 6.5 / 3,
            "s2l/source/explorer/is_ratio_max": 4.0,
            "s2l/source/explorer/kl_sampler_learner_k3": sum(k3) / 3,
            "s2l/source/learner/reward_mean": 0.0,
            "s2l/source/learner/response_length_mean": 3.0,
            "s2l/source/learner/advantage_mean": -1.0,
            "s2l/source/learner/advantage_std": 0.0,
            "s2l/source/learner/is_ratio_mean": 1.0,
            "s2l/source/learner/is_ratio_max": 1.0,
            "s2l/source/learner/kl_sampler_learner_k3": 0.0,
        },
        abs=1e-12,
    )


def test_numbers_of_rows_by_hand():
    """The learner's row of 9 tokens begins with 4 of guidance."""
    rows = SimpleNamespace(source_B=SOURCES, acc_B=np.array([1.0, 0.0, 0.0]), seconds_B=[1.5, 4.0, 2.0])
    rows.length_B, rows.prefix_len_B = [10, 9, 20], [0, 4, 0]
    explorer, learner = "s2l/source/explorer", "s2l/source/learner"
    own = {"rows": 2, "acc_mean": 0.5, "tokens": 30, "gen_seconds_sum": 3.5, "gen_seconds_max": 2.0}
    other = {"rows": 1, "acc_mean": 0.0, "tokens": 5, "gen_seconds_sum": 4.0, "gen_seconds_max": 4.0}
    expected = {f"{explorer}/{name}": value for name, value in own.items()}
    assert row_statistics(rows) == expected | {f"{learner}/{name}": value for name, value in other.items()}
    rows.source_B, rows.acc_B = ["learner"] * 3, None
    found = row_statistics(rows)
    assert [key for key in found if "/explorer/" in key] == [f"{explorer}/rows"] and found[f"{explorer}/rows"] == 0
    assert not [key for key in found if "acc_mean" in key]
    rows.source_B = ["explorer", "learner", "teacher"]
    with pytest.raises(ValueError, match="teacher"):
        row_statistics(rows)


def test_spread_of_advantages_by_hand():
    """Population standard deviation: 1, 2, 6 have mean 3 and squares 4, 1, 9; the sample's would be sqrt(14 / 2)."""
    advantages = [[1.0] * 3, [2.0] * 3, [6.0]]
    three = micro_batch(["learner"] * 3, mask=[[1] * 3, [1] * 3, [1]], advantages=advantages, prefix=[1, 1, 1])
    found = statistics(three, ["learner"] * 3)
    assert found["s2l/source/learner/advantage_std"] == pytest.approx(math.sqrt(14 / 3))
    rows = SimpleNamespace(source_B=["learner"] * 3, session_prefix_B=[1, 1, 1], prefix_len_B=[1, 1, 1])
    sums = take_sums({f"actor/s2l_sum/{name}": value for name, value in source_sums(three).items()}, 3)
    guided = guidance_statistics(sums, rows)
    assert guided["s2l/guidance/advantage_std_guided"] == pytest.approx(math.sqrt(14 / 3))
    assert "s2l/guidance/advantage_std_unguided" not in guided


def test_guidance_by_hand():
    """Two guidance tokens out of the loss, then a row of a later output (-1), then a plain one."""
    mask = [[0, 0, 1], [1, 0, 1], [1]]
    batch = micro_batch(["learner"] * 3, mask=mask, prefix=[2, -1, 0], advantages=[[1.0] * 3, [3.0] * 3, [9.0]])
    sums = take_sums({f"actor/s2l_sum/{name}": value for name, value in source_sums(batch).items()}, 3)
    rows = SimpleNamespace(source_B=["learner"] * 3, session_prefix_B=[2, 2, 0], prefix_len_B=[2, 0, 0])
    expected = {
        "prefix_tokens": 2,
        "prefix_tokens_in_loss": 0,
        "continuation_tokens": 1,
        "continuation_tokens_in_loss": 1,
    }
    expected |= {"advantage_std_guided": 1.0, "advantage_std_unguided": 0.0}
    assert guidance_statistics(sums, rows) == {f"s2l/guidance/{name}": value for name, value in expected.items()}
    read = micro_batch(
        ["learner"] * 3, mask=[[1] * 3, [1] * 3, [1]], prefix=[2, -1, 0], ratio=[[7.0, 7.0, 2.0], [2.0] * 3, [2.0]]
    )
    assert source_sums(read)["guided/prefix_in_loss"] == 2.0
    assert statistics(read, ["learner"] * 3)["s2l/source/learner/is_ratio_mean"] == pytest.approx(2.0), "sampled alone"


def test_without_log_probabilities_or_advantages_those_metrics_are_absent():
    found = statistics(micro_batch(rollout_log_probs=None, advantages=None))
    assert not [key for key in found if "sampler" in key or "is_ratio" in key or "advantage" in key]
    assert take_sums({"actor/loss": 1.0}, 3) == {}, "a step without an update, or a loss that reports no sums"


def test_source_whose_rows_are_all_masked_has_no_mean_over_tokens():
    found = statistics(micro_batch(mask=[[0] * 3, [1] * 3, [0]]))
    assert "s2l/source/explorer/kl_sampler_learner_k3" not in found
    assert "s2l/source/learner/kl_sampler_learner_k3" in found
    assert not {
        f"s2l/source/explorer/{name}" for name in ("advantage_mean", "advantage_std", "response_length_mean")
    } & {*found}


def test_extreme_ratio_stays_finite():
    found = statistics(micro_batch(old_log_probs=[[1e4] * 3, [1e4] * 3, [1e4]]))
    assert found["s2l/source/explorer/is_ratio_max"] == pytest.approx(math.exp(20))
    assert math.isfinite(found["s2l/source/explorer/kl_sampler_learner_k3"])


def test_weights_by_hand():
    batch = micro_batch()
    weights = truncated_weights(batch, cap=2.0)
    assert weights.values().tolist() == pytest.approx([2.0, 0.5, 1.0, 1.0, 1.0, 1.0, 2.0])
    found = statistics(batch.set("rollout_is_weights", weights), cap=2.0)
    assert {name: value for name, value in found.items() if "weight" in name or "clamped" in name} == pytest.approx(
        {
            "s2l/source/explorer/is_weight_mean": 1.5,
            "s2l/source/explorer/applied_weight_mean": 1.5,
            "s2l/source/explorer/is_clamped_fraction": 1 / 3,
            "s2l/source/learner/is_weight_mean": 1.0,
            "s2l/source/learner/applied_weight_mean": 1.0,
            "s2l/source/learner/is_clamped_fraction": 0.0,
        }
    )


@pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
def test_cap_must_be_positive(cap):
    with pytest.raises(ValueError, match="is_cap"):
        truncated_weights(micro_batch(), cap=cap)


@st.composite
def batches(draw, poison=0.0):
    """Sources and columns of one length."""
    shape = draw(st.tuples(st.integers(1, 5), st.integers(1, 6)))
    log_ratio = draw(hnp.arrays(float, shape, elements=st.floats(-1e6, 1e6)))
    mask = draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))
    sources = draw(st.lists(st.sampled_from(["explorer", "learner"]), min_size=shape[0], max_size=shape[0]))
    return sources, log_ratio, mask


def batch_of(sources, log_ratio, mask) -> TensorDict:
    noughts, columns = np.zeros_like(log_ratio).tolist(), ("rm_scores", "advantages", "rollout_log_probs")
    return micro_batch(
        sources,
        ratio=np.ones_like(log_ratio).tolist(),
        mask=mask.tolist(),
        **dict.fromkeys(columns, noughts),
        old_log_probs=log_ratio.tolist(),
    )


@pytest.mark.slow
@given(batches(), st.floats(1e-3, 100))
def test_weight_bounds_and_learner_rows(drawn, cap):
    sources, log_ratio, mask = drawn
    weights = truncated_weights(batch_of(*drawn), cap).values().reshape(log_ratio.shape).numpy()
    explores = np.array(sources) == "explorer"
    assert (weights[~explores] == 1.0).all() and (weights[mask == 0] == 1.0).all()
    on_explorer = weights[(mask > 0) & explores[:, None]]
    assert ((on_explorer > 0) & (on_explorer <= cap)).all()


@pytest.mark.slow
@given(batches(), st.sampled_from([np.nan, np.inf, -np.inf, 7.0]))
def test_masked_tokens_are_not_read(drawn, poison):
    sources, log_ratio, mask = drawn
    clean, poisoned = batch_of(*drawn), batch_of(sources, np.where(mask > 0, log_ratio, poison), mask)
    assert truncated_weights(clean, 2.0).values().tolist() == truncated_weights(poisoned, 2.0).values().tolist()
    assert source_sums(clean) == source_sums(poisoned)


@pytest.mark.slow
@given(batches())
def test_k3_is_never_negative(drawn):
    found = statistics(batch_of(*drawn), drawn[0])
    assert all(value >= 0 for key, value in found.items() if key.endswith("kl_sampler_learner_k3"))
