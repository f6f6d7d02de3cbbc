"""The local loop's numbers, worked out by hand, and each method's part in its rows."""

import math

import pytest
import torch

from s2l_ext.errors import ConfigError
from s2l_ext.evaluation.forward import pad
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.studies.local.losses import (
    clipped_surrogate,
    entropy,
    group_advantages,
    k3,
    picked,
    token_weights,
    truncated_weights,
)
from s2l_ext.studies.local.rows import Batch, Rows
from s2l_ext.studies.local.rules import check_local


def column(*values: float) -> torch.Tensor:
    return torch.tensor([list(values)])


def test_advantages_are_of_the_group_and_a_row_alone_keeps_its_reward() -> None:
    """Group a: mean 1/4, sample standard deviation 1/2."""
    scores = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.7])
    groups = ["a", "a", "a", "a", "b"]
    assert group_advantages(scores, groups, by_std=True).tolist() == pytest.approx(
        [1.5, -0.5, -0.5, -0.5, 0.7], abs=1e-5
    )
    assert group_advantages(scores, groups, by_std=False).tolist() == pytest.approx([0.75, -0.25, -0.25, -0.25, 0.7])


def test_the_surrogate_clips_above_for_gains_below_for_losses_and_caps_a_loss() -> None:
    """Ratios 1.5, 0.5, 1.5 and 5 under clips 0.2 below and 0.3 above, dual clip 3."""
    log_prob = torch.log(column(1.5, 0.5, 1.5, 5.0))
    up = clipped_surrogate(log_prob, torch.zeros(1, 4), torch.tensor([[2.0]]), 0.2, 0.3, 3.0)
    assert up[0].tolist() == pytest.approx([-2.6, -1.0, -2.6, -2.6])
    down = clipped_surrogate(log_prob, torch.zeros(1, 4), torch.tensor([[-2.0]]), 0.2, 0.3, 3.0)
    assert down[0].tolist() == pytest.approx([3.0, 1.6, 3.0, 6.0])


def test_k3_is_of_the_learner_to_the_reference_and_is_clamped() -> None:
    """log p - log r = log 2: r/p = 1/2, so 1/2 + log 2 - 1. The second ratio is e^8, clamped to 10."""
    found = k3(column(math.log(2), -8.0), column(0.0, 0.0))
    assert found[0].tolist() == pytest.approx([0.5 + math.log(2) - 1, 10.0])


def test_importance_weights_are_the_ratio_below_the_cap_where_they_apply() -> None:
    old, sampler = torch.log(column(0.6, 0.9, 0.6)), torch.log(column(0.4, 0.1, 0.4))
    found = truncated_weights(old, sampler, column(1, 1, 0), cap=2.0)
    assert found[0].tolist() == pytest.approx([1.5, 2.0, 1.0])


def test_entropy_and_log_probabilities_of_a_distribution_of_three() -> None:
    logits = torch.log(torch.tensor([[[0.5, 0.3, 0.2]]]))
    assert picked(logits, torch.tensor([[2]])).item() == pytest.approx(math.log(0.2))
    wanted = -(0.5 * math.log(0.5) + 0.3 * math.log(0.3) + 0.2 * math.log(0.2))
    assert entropy(logits).item() == pytest.approx(wanted)


@pytest.mark.parametrize(
    ("mode", "wanted"),
    [
        ("token-mean", [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]),
        ("seq-mean-token-sum", [[0.5, 0.5, 0.5], [0.5, 0.0, 0.0]]),
        ("seq-mean-token-mean", [[1 / 6, 1 / 6, 1 / 6], [0.5, 0.0, 0.0]]),
    ],
)
def test_what_a_token_weighs(mode: str, wanted: list[list[float]]) -> None:
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert token_weights(mask, mode).tolist() == [pytest.approx(row) for row in wanted]


def test_prompts_are_padded_left_and_responses_right() -> None:
    ids, seen = pad([[7], [8, 9]], 0, left=True)
    assert ids.tolist() == [[0, 7], [8, 9]] and seen.tolist() == [[0, 1], [1, 1]]
    ids, seen = pad([[7], [8, 9]], 0)
    assert ids.tolist() == [[7, 0], [8, 9]] and seen.tolist() == [[1, 0], [1, 1]]


def two_rows() -> Rows:
    rows = Rows()
    rows.add([1, 2], [], "explorer", 0)
    rows.add([1, 2], [5, 6], "learner", 0)
    rows.responses[0] += [3]
    rows.responses[1] += [4]
    rows.acc_B = [0.0, 1.0]
    return rows


def test_guidance_is_outside_of_the_loss_unless_asked_for_and_wrong_rows_can_be_left_out() -> None:
    def mask(with_guidance: bool, correct_only: bool) -> list[list[float]]:
        return Batch.of(two_rows(), 0, with_guidance, correct_only).mask_B_T.tolist()

    assert mask(False, False) == [[1, 0, 0], [0, 0, 1]]
    assert mask(True, False) == [[1, 0, 0], [1, 1, 1]]
    assert mask(True, True) == [[0, 0, 0], [1, 1, 1]]
    partly = two_rows()
    partly.acc_B = [0.75, 0.5]  # verl's loss takes rows above one half too
    assert Batch.of(partly, 0, True, True).mask_B_T.tolist() == [[1, 0, 0], [0, 0, 0]]
    batch = Batch.of(two_rows(), 0, True, False)
    assert batch.ids_B_L.tolist() == [[1, 2, 3, 0, 0], [1, 2, 5, 6, 4]]
    assert batch.response_B_T.tolist() == [[3, 0, 0], [5, 6, 4]]


def test_outcomes_have_who_sampled_and_how_much_guidance() -> None:
    first, second = two_rows().outcomes
    assert (first.uid, first.acc, first.source, first.prefix_len) == ("0", 0.0, "explorer", 0)
    assert (second.acc, second.source, second.prefix_len) == (1.0, "learner", 2)
    assert two_rows().sampled_B == [1, 1] and two_rows().tokens_B == [3, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "override", "message"),
    [
        ("grpo/toy", "algorithm.adv_estimator=rloo", r"algorithm\.adv_estimator=rloo: the local loop does not support"),
        ("grpo/toy", "actor_rollout_ref.model.lora_rank=8", r"lora_rank=8: .* engine: verl"),
        (
            "grpo/toy",
            "actor_rollout_ref.actor.loss_agg_mode=token-sum",
            r"loss_agg_mode=token-sum: .* supports token-mean",
        ),
        ("expo/toy", "actor_rollout_ref.actor.kl_loss_type=mse", r"kl_loss_type=mse: .* low_var_kl"),
        ("s2l_po/toy_offline", "trainer.save_freq=-1", r"s2l\.explorer\.source=offline: .* supports live"),
        ("g2rpo_a/toy", "s2l.guidance.teacher_rollouts=a.jsonl", r"teacher_rollouts=a\.jsonl: .* traces in the data"),
        ("expo/toy", "s2l.curriculum.warm_start=a.parquet", r"warm_start=a\.parquet"),
        ("grpo/toy", "actor_rollout_ref.actor.grad_clip=0.1", r"actor\.grad_clip=0\.1: .* does not support this"),
        ("grpo/toy", "actor_rollout_ref.actor.optim.lr_warmup_steps=1000", r"optim\.lr_warmup_steps=1000: .* support"),
        ("grpo/toy", "actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.5", r"steps_ratio=0\.5: .* support"),
        ("grpo/toy", "actor_rollout_ref.actor.optim.lr_scheduler_type=cosine", r"scheduler_type=cosine: .* support"),
        ("grpo/toy", "actor_rollout_ref.rollout.val_kwargs.top_k=1", r"val_kwargs\.top_k=1: .* support"),
        ("s2l_po/toy", "s2l.explorer.top_k=5", r"s2l\.explorer\.top_k=5: .* supports -1"),
        ("s2l_po/toy", "s2l.explorer.rollout_overrides={max_num_seqs: 4}", r"rollout_overrides=.*max_num_seqs"),
    ],
)
def test_a_setting_that_the_loop_would_leave_out_is_refused(recipe: str, override: str, message: str) -> None:
    cfg = compose_config(recipe, [override])
    with pytest.raises(ConfigError, match=message):
        check_local(cfg, parse_s2l(cfg.s2l))


@pytest.mark.slow
@pytest.mark.parametrize(
    "recipe",
    [
        "grpo/toy",
        "s2l_po/toy",
        "s2l_po/hard_switch",
        "g2rpo_a/toy",
        "expo/toy",
        "combined/expo_s2l",
        "combined/g2rpo_a_s2l",
    ],
)
def test_the_toy_recipes_are_known(recipe: str) -> None:
    cfg = compose_config(recipe, [])
    check_local(cfg, parse_s2l(cfg.s2l))
