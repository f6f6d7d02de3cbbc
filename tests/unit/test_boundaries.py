"""The last value that an argument may have is taken, with the result that it gives."""

import math

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from s2l_ext.methods.curriculum.orders import FileOrder
from s2l_ext.methods.curriculum.pass_rates import PassRates
from s2l_ext.methods.explorer.stored_rollouts import StoredRollouts
from s2l_ext.methods.guidance.length import AdaptiveGuidance, LinearDecay, StepwiseDecay
from s2l_ext.training.source_sums import truncated_weights


def test_what_is_left_of_a_store_to_the_last_rollout():
    draws = StoredRollouts({"a": 5}, "error")
    taken = draws.take("a", 3).indices + draws.take("a", 2).indices
    assert sorted(taken) == [0, 1, 2, 3, 4]


def test_one_prompt_and_an_average_that_keeps_nothing():
    rates = PassRates(1, ema=0.0)
    rates.update([0], [0.75])
    assert rates.rates.tolist() == [0.75]


def test_a_cap_below_one_cuts_weights_below_one():
    columns = {"old_log_probs": [0.0, math.log(0.25)], "rollout_log_probs": [0.0, 0.0], "response_mask": [1.0, 1.0]}
    nested = {
        name: torch.nested.as_nested_tensor([torch.tensor(row)], layout=torch.jagged) for name, row in columns.items()
    }
    weights = truncated_weights(TensorDict({**nested, "s2l_source": ["explorer"]}, batch_size=1), cap=0.5)
    assert weights.values().tolist() == [0.5, 0.25]


def test_a_window_of_one_compares_with_the_last_accuracy():
    """100 tokens * 0.5 / 0.25."""
    rule = AdaptiveGuidance(initial=100, max_length=1000, window=1)
    for accuracy in (0.5, 0.25):
        rule.observe(accuracy)
    assert rule.length == 200


def test_decays_of_one_step_a_stage_and_of_no_tokens():
    assert [StepwiseDecay(initial=80, gamma=0.5, every=1).at(step) for step in (1, 2, 3)] == [80, 40, 20]
    assert LinearDecay(initial=0, total_steps=3).at(2) == 0


def test_an_order_that_ended_its_pass_goes_on_with_the_next():
    order = FileOrder(4)
    order.draw(4, np.random.default_rng(0))
    assert order.state_dict()["position"] == 4
    resumed = FileOrder(4)
    resumed.load_state_dict(order.state_dict())
    assert resumed.draw(3, np.random.default_rng(0)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("position", [-1, 5])
def test_a_position_outside_the_pass_is_refused(position: int):
    order = FileOrder(4)
    with pytest.raises(ValueError, match=f"saved position {position} is outside the 4 prompts"):
        order.load_state_dict({**order.state_dict(), "position": position})
