"""Importance weights in verl's own losses: with them and without them."""

from functools import partial

import pytest
import torch
from tensordict import TensorDict
from verl.utils import tensordict_utils as tu
from verl.utils.config import omega_conf_to_dataclass
from verl.workers.utils.losses import ppo_loss

from s2l_ext.training.actor_worker import StepLoss
from s2l_ext.training.verl_rules import WEIGHTED_LOSSES

pytestmark = pytest.mark.contract

WEIGHTS = [[0.5, 2.0, 1.0], [1.0]]
"""Two rows: an explorer's of three tokens, a learner's of one. Prompts have two tokens and one."""


def nested(*rows: list[float]) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(one) for one in rows], layout=torch.jagged)


def rows(weights: list[list[float]] | None) -> TensorDict:
    fields = {
        "prompts": nested([1, 2], [3]),
        "responses": nested([4, 5, 6], [7]),
        "response_mask": nested([1.0, 1.0, 1.0], [1.0]),
        "old_log_probs": nested([-1.0, -2.0, -3.0], [-0.5]),
        "advantages": nested([1.0] * 3, [-1.0]),
    }
    if weights is not None:
        fields["rollout_is_weights"] = nested(*weights)
    data = TensorDict(fields, batch_size=2)
    data["s2l_source"] = ["explorer", "learner"]
    tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=4, global_batch_size=2)
    return data


@pytest.fixture
def loss_of(composed):
    """``loss_of(mode)(data)`` -> (loss, gradient by the response tokens' log-probabilities)."""

    def make(mode: str):
        settings = [f"actor_rollout_ref.actor.policy_loss.loss_mode={mode}"]
        settings += ["actor_rollout_ref.actor.policy_loss.dro_beta=1.0"] if mode == "dro" else []
        config = omega_conf_to_dataclass(composed("s2l_po/toy", *settings).actor_rollout_ref.actor)
        step_loss = StepLoss(partial(ppo_loss, config=config))

        def call(data: TensorDict) -> tuple[float, list[float]]:
            # sequences of 2 + 3 and 1 + 1 tokens; the output at a place predicts the next one
            leaf = torch.tensor([0.0, -1.0, -2.0, -3.0, 0.0, -0.5, 0.0], requires_grad=True)
            output = torch.nested.nested_tensor_from_jagged(leaf, torch.tensor([0, 5, 7]))
            loss, _ = step_loss(model_output={"log_probs": output}, data=data)
            loss.backward()
            return loss.item(), leaf.grad[[1, 2, 3, 5]].tolist()

        return call

    return make


def test_verls_loss_multiplies_each_tokens_weight_in(loss_of) -> None:
    """Advantages 1 1 1 and -1, ratio 1, mean over four tokens: (-1 -1 -1 +1)/4 without, (-0.5 -2 -1 +1)/4 with."""
    loss = loss_of("vanilla")
    assert loss(rows(None)) == (pytest.approx(-0.5), pytest.approx([-0.25, -0.25, -0.25, 0.25]))
    assert loss(rows(WEIGHTS)) == (pytest.approx(-0.625), pytest.approx([-0.125, -0.5, -0.25, 0.25]))


@pytest.mark.parametrize("mode", sorted(WEIGHTED_LOSSES))
def test_every_loss_of_the_list_multiplies_them_in(loss_of, mode: str) -> None:
    loss = loss_of(mode)
    without, weighted = loss(rows(None))[1], loss(rows(WEIGHTS))[1]
    assert without[0] != 0 and weighted[0] == pytest.approx(0.5 * without[0])
    assert without[1] != 0 and weighted[1] == pytest.approx(2 * without[1])
