"""Signs of a step, each by a value worked out by hand that the other sign does not give."""

from functools import partial
from math import e, exp

import pytest
import torch
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from s2l_ext.methods.explorer.advantage_groups import grouped_by_source
from s2l_ext.training import actor_worker
from s2l_ext.training.actor_worker import StepLoss, ratio_sums
from s2l_ext.training.pending_prompts import PromptPlan
from s2l_ext.training.source_statistics import guidance_statistics, row_statistics, take_sums, token_statistics
from s2l_ext.training.source_sums import source_sums, truncated_weights
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.contract


def row(source: str, reward: float, old: list[float], behaviour: list[float], **more: object) -> dict:
    """A row whose reward stands on its last token, as verl writes it."""
    return {
        "s2l_source": source,
        "rm_scores": [0.0] * (len(old) - 1) + [reward],
        "response_mask": [1.0] * len(old),
        "old_log_probs": old,
        "rollout_log_probs": behaviour,
        "advantages": [0.0] * len(old),
        "metrics": {"generate_sequences": 2.0},
        "s2l_prefix_len": 0,
        "extra_fields": {"reward_extra_info": {"score": reward, "acc": float(reward > 0)}},
        **more,
    }


@pytest.fixture
def step(queue):
    """One group of two explorer and two learner rows. Learner minus sampler: 1, -0.5 | 0.25 | 0, 0, 0.2 | -1."""
    queue.rows = {
        "a_0_0": row("explorer", 1.0, [-1.0, -2.0], [-2.0, -1.5], uid="a"),
        "a_1_0": row("explorer", 0.0, [-3.0], [-3.25], uid="a"),
        "a_2_0": row("learner", 1.0, [-1.0, -1.0, -1.0], [-1.0, -1.0, -1.2], uid="a"),
        "a_3_0": row("learner", 1.0, [-2.0], [-1.0], uid="a"),
    }
    return queue


COLUMNS = ["response_mask", "rm_scores", "advantages", "old_log_probs", "rollout_log_probs"]


def by_source(queue, padding: tuple[str, ...] = (), guided: bool = False) -> dict[str, float]:
    """Numbers of a step's rows: sums of the workers, which get padding too, divided by the driver."""
    batch = queue.batch(padding)
    rows = StepRows.of(batch, True, guided)
    data = queue.get(batch.keys, "train", [*COLUMNS, "s2l_source", *["s2l_prefix_len"] * guided])
    metrics = {f"actor/s2l_sum/{name}": value / 4 for name, value in source_sums(data).items() if "_max" not in name}
    metrics |= {f"actor/s2l_sum/{name}": value for name, value in source_sums(data).items() if "_max" in name}
    sums = take_sums(metrics, len(batch.keys))
    found = row_statistics(rows) | token_statistics(sums, rows)
    return found | (guidance_statistics(sums, rows) if guided else {})


def weights_of(queue, cap: float) -> list[list[float]]:
    data = queue.get(list(queue.rows), "train", [*COLUMNS, "s2l_source"])
    return [one.tolist() for one in truncated_weights(data, cap).unbind()]


# ---- importance weights -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cap", "first"), [(2.0, 2.0), (3.0, e)])
def test_an_explorer_token_weighs_learner_over_explorer_up_to_the_cap(queue, cap: float, first: float) -> None:
    """Old -1 and behaviour -2: the learner finds the token e times as likely."""
    queue.rows = {"a_0_0": row("explorer", 1.0, [-1.0, -2.0], [-2.0, -1.0])}
    assert weights_of(queue, cap) == [pytest.approx([first, exp(-1)])]


def test_learner_rows_of_the_same_step_weigh_exactly_one(step) -> None:
    expected = [[1.5, exp(-0.5)], [exp(0.25)], [1.0, 1.0, 1.0], [1.0]]
    assert weights_of(step, cap=1.5) == [pytest.approx(one) for one in expected]


def test_tokens_outside_the_loss_weigh_one(queue) -> None:
    queue.rows = {"a_0_0": row("explorer", 1.0, [-1.0, -1.0], [-2.0, -2.0], response_mask=[0.0, 1.0])}
    assert weights_of(queue, cap=5.0) == [pytest.approx([1.0, e])]


# ---- numbers by source --------------------------------------------------------------------------------------------


def test_sampler_ratio_is_learner_over_sampler(step) -> None:
    """And k3 = exp(d) - 1 - d, which is not the same for -d."""
    found = by_source(step)
    explorer, learner = ([1.0, -0.5, 0.25], [0.0, 0.0, 0.2, -1.0])
    for source, ratios in (("explorer", explorer), ("learner", learner)):
        prefix = f"s2l/source/{source}"
        assert found[f"{prefix}/is_ratio_mean"] == pytest.approx(sum(map(exp, ratios)) / len(ratios), rel=1e-5)
        assert found[f"{prefix}/is_ratio_max"] == pytest.approx(exp(max(ratios)), rel=1e-5)
        assert found[f"{prefix}/kl_sampler_learner_k3"] == pytest.approx(
            sum(exp(d) - 1 - d for d in ratios) / len(ratios), rel=1e-4
        )


def test_numbers_by_source_leave_padding_rows_out(step) -> None:
    """As verl makes them: one token, out of the loss and without a reward; the rest is the first row's."""
    step.rows["pad_0_0"] = row("learner", 0.0, [-1.0], [-9.0], uid="pad", response_mask=[0.0], advantages=[4.0])
    step.rows["a_2_0"]["advantages"] = [0.75, 0.75, 0.0]
    step.rows["a_3_0"] |= {"metrics": {"generate_sequences": 5.0}, "advantages": [-0.25]}
    found = by_source(step, padding=("pad_0_0",))
    expected = {"rows": 2, "reward_mean": 1, "acc_mean": 1, "response_length_mean": 2, "tokens": 4}
    expected |= {"advantage_mean": 0.125, "gen_seconds_sum": 7, "gen_seconds_max": 5}
    assert {name: found[f"s2l/source/learner/{name}"] for name in expected} == pytest.approx(expected)
    assert found["s2l/source/explorer/reward_mean"] == 0.5


def test_a_row_that_is_out_of_the_loss_counts_in_no_mean_over_its_tokens(step) -> None:
    """And among the tokens that the learner sampled: 3 and 1."""
    step.rows["a_3_0"] |= {"response_mask": [0.0], "advantages": [9.0]}
    step.rows["a_2_0"]["advantages"] = [0.5] * 3
    found = by_source(step)
    learner = {name: found[f"s2l/source/learner/{name}"] for name in ("advantage_mean", "advantage_std", "tokens")}
    assert learner == {"advantage_mean": 0.5, "advantage_std": 0.0, "tokens": 4.0}
    assert found["s2l/source/learner/response_length_mean"] == 3.0


def test_accuracy_is_left_out_where_one_row_has_none(step) -> None:
    step.rows["a_2_0"]["extra_fields"] = {"reward_extra_info": {"score": 1.0}}
    assert not [name for name in by_source(step) if "acc_mean" in name]


def test_rows_whose_judge_ran_out_of_time_are_counted(step) -> None:
    assert StepRows.of(step.batch(), True, False).timed_out() == {}
    for key, value in (("a_0_0", 1.0), ("a_1_0", 0.0), ("a_2_0", 1.0)):
        step.rows[key]["extra_fields"] = {"reward_extra_info": {"acc": 0.0, "timed_out": value}}
    step.rows["pad_0_0"] = step.rows["a_0_0"]
    rows = StepRows.of(step.batch(padding=("pad_0_0",)), True, False)
    assert rows.timed_out() == {"s2l/reward/timed_out": 2.0}


@pytest.mark.parametrize("missing", [None, "rollout_log_probs", "old_log_probs"])
def test_there_is_a_ratio_where_both_log_probabilities_are(step, missing: str | None) -> None:
    for row in step.rows.values():
        row.pop(missing, None)
    assert bool([name for name in by_source(step) if "sampler" in name]) == (missing is None)


def test_guidance_tokens_are_the_first_of_a_row_and_in_no_ratio(queue) -> None:
    """Two guidance tokens with behaviour 0; the loss reads the first row's, not the second's."""
    old, behaviour = [-1.0, -2.0, -1.0], [0.0, 0.0, -1.5]
    queue.rows = {
        "a_0_0": row("learner", 1.0, old, behaviour, s2l_prefix_len=2, advantages=[1.0] * 3),
        "a_1_0": row("learner", 1.0, [*old, -1.0], [*behaviour, -1.0], s2l_prefix_len=2, response_mask=[0, 0, 1, 1]),
        "a_2_0": row("learner", 1.0, [-1.0], [-1.0], s2l_prefix_len=0, advantages=[7.0]),
    }
    queue.rows["a_1_0"]["advantages"] = [0.0, 0.0, 3.0, 3.0]
    found = by_source(queue, guided=True)
    assert found["s2l/source/learner/is_ratio_mean"] == pytest.approx((2 * exp(0.5) + 2) / 4)
    advantages = {name.rpartition("_")[2]: value for name, value in found.items() if "guidance/advantage_std" in name}
    assert advantages == pytest.approx({"guided": 1.0, "unguided": 0.0}), "1 and 3 of guided rows, 7 of the other"
    counts = {
        name.rpartition("/")[2]: value for name, value in found.items() if "guidance" in name and "tokens" in name
    }
    assert counts == {
        "prefix_tokens": 4.0,
        "prefix_tokens_in_loss": 2.0,
        "continuation_tokens": 3.0,
        "continuation_tokens_in_loss": 3.0,
    }


# ---- the loss's own ratio -----------------------------------------------------------------------------------------


def test_ppo_ratio_is_new_over_old() -> None:
    one = torch.ones(1, 1)
    sums = ratio_sums(-one, -2 * one, one, one, 0.2, 0.2)
    assert {name: float(value) for name, value in sums.items()} == pytest.approx({"ratio": e, "clipped": 1})


@pytest.mark.parametrize(("ratio", "advantage", "clipped"), [(0.7, -1.0, 1), (0.7, 1.0, 0), (1.25, 1.0, 0)])
def test_clip_bounds_are_one_minus_low_and_one_plus_high(ratio: float, advantage: float, clipped: int) -> None:
    """Low 0.2, high 0.28: only 0.7 at a negative advantage is cut."""
    one = torch.ones(1, 1)
    sums = ratio_sums(torch.log(one * ratio), torch.zeros(1, 1), one * advantage, one, 0.2, 0.28)
    assert float(sums["clipped"]) == clipped


def test_the_loss_reports_each_source_from_its_own_rows(monkeypatch) -> None:
    """New minus old: explorer 1 and 0, learner -1. Old minus sampler: explorer 1 and -2, learner -2; cap 2."""
    monkeypatch.setattr(actor_worker, "no_padding_2_padding", lambda tensor, data: tensor)
    config = OmegaConf.create({"clip_ratio": 0.2, "clip_ratio_low": None, "clip_ratio_high": 0.28, "policy_loss": {}})

    def nested(*rows: list[float]) -> torch.Tensor:
        return torch.nested.as_nested_tensor([torch.tensor(one) for one in rows], layout=torch.jagged)

    data = TensorDict(
        {
            "response_mask": nested([1.0, 1.0], [1.0]),
            "old_log_probs": nested([-2.0, -1.0], [-1.0]),
            "rollout_log_probs": nested([-3.0, 1.0], [1.0]),
            "advantages": nested([0.5, 0.5], [-0.5]),
            "rm_scores": nested([0.0, 1.0], [0.0]),
            "s2l_source": ["explorer", "learner"],
        },
        batch_size=2,
    )
    tu.assign_non_tensor(data, s2l_is_cap=2.0)
    given = {}

    def verls(model_output, data, dp_group, config):
        if "rollout_is_weights" in data:  # asked without them too
            given["weights"] = data["rollout_is_weights"].values().tolist()
        return torch.zeros(()), {}

    own = StepLoss(partial(print, config=OmegaConf.merge(config, {"clip_ratio_low": 0.1})))
    assert (own.clip_low, own.clip_high) == (0.1, 0.28)
    loss = StepLoss(partial(verls, config=config))
    assert (loss.clip_low, loss.clip_high) == (0.2, 0.28)
    _, metrics = loss(model_output={"log_probs": torch.tensor([[-1.0, -1.0], [-2.0, 9.0]])}, data=data)
    assert given["weights"] == pytest.approx([2.0, exp(-2), 1.0]) and "rollout_is_weights" not in data
    sums = {f"actor/{name}": float(value.aggregate()) for name, value in metrics.items()}
    rows = StepRows(["a_0_0", "a_1_0"], ["explorer", "learner"], [0, 0], None, [{}, {}])
    finished, names = token_statistics(take_sums(sums, 2), rows), ("ppo", "weight", "clamped")
    explorer, learner = "s2l/source/explorer", "s2l/source/learner"
    assert {name: value for name, value in finished.items() if any(one in name for one in names)} == pytest.approx(
        {
            f"{explorer}/ppo_ratio_mean": (e + 1) / 2,
            f"{explorer}/ppo_clip_fraction": 0.5,
            f"{explorer}/applied_weight_mean": (2 + exp(-2)) / 2,
            f"{explorer}/is_weight_mean": (2 + exp(-2)) / 2,
            f"{explorer}/is_clamped_fraction": 0.5,
            f"{learner}/ppo_ratio_mean": exp(-1),
            f"{learner}/ppo_clip_fraction": 1.0,
            f"{learner}/applied_weight_mean": 1.0,
            f"{learner}/is_weight_mean": 1.0,
            f"{learner}/is_clamped_fraction": 0.0,
        }
    )
    assert sums == {}, "taken out of what verl logs"
    other = StepLoss(partial(verls, config=OmegaConf.merge(config, {"policy_loss": {"loss_mode": "gspo"}})))
    _, metrics = other(model_output={"log_probs": torch.tensor([[-1.0, -1.0], [-2.0, 9.0]])}, data=data)
    names = {name.rpartition("/")[2] for name in metrics}
    assert "ratio" in names and "clipped" not in names, "another loss has another clip, or none"


# ---- advantages ---------------------------------------------------------------------------------------------------

UNION = [0.5, -1.5, 0.5, 0.5]  # mean 0.75, standard deviation (G - 1) 0.5
PER_SOURCE = [0.5**0.5, -(0.5**0.5), 0.0, 0.0]  # explorer: mean 0.5, standard deviation 0.5 ** 0.5


@pytest.mark.parametrize(("baseline", "expected"), [("union", UNION), ("per_source", PER_SOURCE)])
def test_advantages_of_verl_by_baseline(step, trainer_of, baseline: str, expected: list[float]) -> None:
    trainer = trainer_of("s2l_po/toy", f"s2l.explorer.baseline={baseline}")
    trainer.step_plans = {"a": PromptPlan(1, slots=2)}
    trainer.config.actor_rollout_ref.rollout.n = 4
    metrics: dict[str, float] = {}
    trainer._compute_advantage(step.batch(), metrics)
    assert [one[0] for one in step.column("advantages")] == pytest.approx(expected, abs=1e-4)
    assert step.column("uid") == ["a"] * 4, "as it was"
    assert metrics["s2l/explorer/missing_rows"] == metrics["s2l/learner/missing_rows"] == 0
    assert "rollout_is_weights" not in step.rows["a_0_0"]


def test_a_stored_row_that_the_store_left_alone_shares_the_groups_baseline(step, trainer_of) -> None:
    """The schedule says two and the store had one: alone it would have no baseline, and its reward as advantage."""
    trainer = trainer_of("s2l_po/toy", "s2l.explorer.baseline=per_source")
    step.rows["a_1_0"]["s2l_source"] = "learner"
    trainer.step_plans = {"a": PromptPlan(1, slots=2, stored=1)}
    trainer.config.actor_rollout_ref.rollout.n = 4
    trainer._compute_advantage(step.batch(), {})
    assert [one[0] for one in step.column("advantages")] == pytest.approx(UNION, abs=1e-4)


def test_groups_by_source_end_with_the_block_also_after_an_error(step) -> None:
    own = Step(1, step.batch(), {}, {}, StepRows.of(step.batch(), True, False))
    with pytest.raises(RuntimeError), grouped_by_source(own):
        assert step.column("uid") == ["a/explorer", "a/explorer", "a/learner", "a/learner"]
        raise RuntimeError
    assert step.column("uid") == ["a"] * 4


@pytest.mark.parametrize(("correction", "sent"), [("truncated_is", {"s2l_is_cap": 1.5}), ("none", {})])
def test_the_cap_is_sent_when_weights_are_asked_for(trainer_of, correction: str, sent: dict) -> None:
    trainer = trainer_of("s2l_po/toy", f"s2l.explorer.correction={correction}", "s2l.explorer.is_cap=1.5")
    own = Step(1, KVBatchMeta(), {}, {}, StepRows([], [], [], None, []))
    trainer.methods[0].before_update(own)
    assert own.batch.extra_info == sent
