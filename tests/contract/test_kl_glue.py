"""The step's KL coefficient on the driver and in verl's own loss."""

import json
import types
from functools import partial

import pytest
import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu
from verl.utils.metric import reduce_metrics

from s2l_ext.errors import DataError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.kl.config import AccuracyKLConfig, AdaptiveTargetKLConfig, AnyKL, ConstantKLConfig
from s2l_ext.methods.kl.controller import KL
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.actor_worker import StepLoss
from s2l_ext.training.batch_fields import KL_BETA_FIELD
from s2l_ext.training.outcomes import RolloutOutcome
from s2l_ext.training.step import Step, StepRows

pytestmark = [pytest.mark.contract, pytest.mark.slow]


# ---- the coefficient in verl's loss -------------------------------------------------------------------------------


@pytest.fixture
def loss_call():
    """``loss_call(beta)`` -> (loss, metrics, gradient) of verl's own ppo_loss over two rows of three tokens."""
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    cfg = compose_config("expo/toy", ["actor_rollout_ref.actor.kl_loss_coef=0.02"])
    config = omega_conf_to_dataclass(cfg.actor_rollout_ref.actor)
    log_prob = torch.tensor([[-1.0, -2.0, -0.5], [-0.3, -1.5, -2.5]], requires_grad=True)

    def nested(tensor):
        return torch.nested.as_nested_tensor(list(tensor), layout=torch.jagged)

    def call(beta, loss=None):
        data = TensorDict(
            {
                "response_mask": nested(torch.ones(2, 3)),
                "old_log_probs": nested(log_prob.detach()),
                "advantages": nested(torch.tensor([[1.0] * 3, [-1.0] * 3])),
                "ref_log_prob": nested(torch.full((2, 3), -1.2)),
            },
            batch_size=2,
        )
        tu.assign_non_tensor(data, dp_size=1, batch_num_tokens=6, global_batch_size=2)
        if beta is not None:
            tu.assign_non_tensor_data(data, KL_BETA_FIELD, beta)
        log_prob.grad = None
        value, metrics = (loss or StepLoss(partial(ppo_loss, config=config)))(
            model_output={"log_probs": log_prob}, data=data
        )
        value.backward()
        return value.item(), metrics, log_prob.grad.clone()

    import verl.workers.utils.losses as losses

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(losses, "no_padding_2_padding", lambda tensor, data: tensor)
        yield types.SimpleNamespace(call=call, config=config, ppo_loss=ppo_loss)


def test_loss_moves_by_the_kl_term_and_nothing_else(loss_call) -> None:
    (zero, metrics, _), (one, _, _), (two, _, _) = (loss_call.call(beta) for beta in (0.0, 0.5, 1.0))
    kl = metrics["kl_loss"].aggregate()
    assert kl > 0
    assert one - zero == pytest.approx(0.5 * kl, rel=1e-6)
    assert two - zero == pytest.approx(kl, rel=1e-6)


def test_gradient_is_verls_own_at_that_coefficient(loss_call) -> None:
    object.__setattr__(loss_call.config, "kl_loss_coef", 0.0137)
    expected = loss_call.call(None, partial(loss_call.ppo_loss, config=loss_call.config))
    object.__setattr__(loss_call.config, "kl_loss_coef", 0.02)
    found = loss_call.call(0.0137)
    assert found[0] == expected[0] and torch.equal(found[2], expected[2])


def test_without_a_step_coefficient_the_loss_is_verls(loss_call) -> None:
    verls = loss_call.call(None, partial(loss_call.ppo_loss, config=loss_call.config))
    ours = loss_call.call(None)
    assert ours[0] == verls[0] and set(ours[1]) == set(verls[1])


def test_verls_configuration_is_not_changed(loss_call) -> None:
    loss_call.call(0.5)
    assert loss_call.config.kl_loss_coef == 0.02
    assert loss_call.call(None)[1]["kl_coef"] == 0.02


def test_report_shows_the_smallest_and_the_largest_coefficient_used(loss_call) -> None:
    reports = [loss_call.call(beta)[1] for beta in (0.01, 0.03)]
    lists = {name: [report[name] for report in reports] for name in reports[0] if name.startswith("s2l_kl_beta")}
    assert reduce_metrics(lists) == {"s2l_kl_beta_min": 0.01, "s2l_kl_beta_max": 0.03}


# ---- the step's coefficient on the driver -------------------------------------------------------------------------


def kl_of(config: AnyKL) -> KL:
    kl = KL(config, S2LConfig(kl=config), compose_config("expo/toy", []))
    kl.start(trainer=None)
    return kl


def step_of(*accuracies: float | None) -> Step:
    """A step before its update, with one session for each accuracy."""
    batch = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])
    sessions = [RolloutOutcome("a", acc, "learner") for acc in accuracies]
    return Step(1, batch, metrics={}, plans={}, rows=StepRows([], [], [], None, []), outcomes=sessions)


@pytest.fixture
def sent() -> tuple[KL, Step]:
    """A coefficient that was chosen, and the step that carries it to the workers."""
    kl, step = kl_of(AccuracyKLConfig()), step_of(1.0, 0.0)
    kl.before_update(step)
    assert step.batch.extra_info[KL_BETA_FIELD] == pytest.approx(0.02 * 0.7310586)
    return kl, step


def reported(low: float, high: float) -> dict[str, float]:
    return {"actor/s2l_kl_beta_min": low, "actor/s2l_kl_beta_max": high, "actor/kl_loss": 0.25}


def test_matching_reports_are_logged_and_taken_out_of_verls_metrics(sent) -> None:
    kl, step = sent
    beta = kl.applied["beta"]
    step.metrics = reported(beta, beta)
    kl.after_update(step)
    assert step.metrics == {"actor/kl_loss": 0.25}
    logged = kl.metrics(step)
    assert (logged["s2l/kl/accuracy"], logged["s2l/kl/kl"], logged["s2l/kl/beta_reported_low"]) == (0.5, 0.25, beta)


def test_a_worker_with_another_coefficient_stops_the_run(sent) -> None:
    kl, step = sent
    beta = kl.applied["beta"]
    step.metrics = reported(beta, beta * 1.0001)
    with pytest.raises(RuntimeError, match="used KL coefficients"):
        kl.after_update(step)
    for half in ({}, {"actor/s2l_kl_beta_min": beta}, {"actor/s2l_kl_beta_max": beta}):
        step.metrics = {"actor/kl_loss": 0.25, **half}
        with pytest.raises(RuntimeError, match="did not reach the loss"):
            kl.after_update(step)


def test_target_controller_sees_the_kl_and_is_saved() -> None:
    kl, step = kl_of(AdaptiveTargetKLConfig(target=0.1)), step_of(None)
    kl.before_update(step)
    step.metrics = reported(0.02, 0.02)
    kl.after_update(step)
    rows = 16 * 8
    expected = 0.02 * (1 + rows / 10_000 * 0.2)
    assert kl.controller.coefficient() == pytest.approx(expected)
    assert kl.metrics(step)["s2l/kl/beta"] == 0.02 and "s2l/kl/accuracy" not in kl.metrics(step)
    resumed = kl_of(AdaptiveTargetKLConfig(target=0.1))
    resumed.load_state_dict(json.loads(json.dumps(kl.state_dict())))
    assert resumed.controller.coefficient() == kl.controller.coefficient()


def test_accuracy_conditioned_kl_refuses_rows_without_accuracy() -> None:
    with pytest.raises(DataError, match="s2l.kl.type=accuracy needs"):
        kl_of(AccuracyKLConfig()).before_update(step_of(None))


@pytest.mark.parametrize(("second", "applied"), [(0.0, {"accuracy": 0.5}), (None, {})])
def test_a_coefficient_that_needs_no_accuracy_logs_it_where_every_row_has_one(second, applied) -> None:
    kl, step = kl_of(ConstantKLConfig(beta=0.03)), step_of(1.0, second)
    kl.before_update(step)
    assert kl.applied == {"beta": 0.03, **applied} and step.batch.extra_info[KL_BETA_FIELD] == 0.03
