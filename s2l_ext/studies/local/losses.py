"""What a row and a token weigh: GRPO's advantage, PPO's surrogate, k3, entropy and verl's ways to add tokens up.

Shapes: B rows, T response tokens, V vocabulary. The values are verl 0.9.1's, its clamps included.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import torch
from torch import Tensor

MOST_LOG_RATIO, MOST_K3 = 20.0, 10.0
"""verl's clamps of a token's log-ratio and of its k3."""
EPSILON = 1e-6


def group_advantages(score_B: Tensor, groups: Sequence[Hashable], by_std: bool) -> Tensor:
    """(B,) reward minus the mean of the row's group, over its standard deviation if ``by_std``.

    A row alone in its group keeps its reward, as in verl.
    """
    advantage_B = torch.zeros_like(score_B)
    for name in set(groups):
        own_B = torch.tensor([group == name for group in groups])
        scores = score_B[own_B]
        alone = len(scores) == 1
        centred = scores if alone else scores - scores.mean()
        advantage_B[own_B] = centred / (scores.std() + EPSILON) if by_std and not alone else centred
    return advantage_B


def clipped_surrogate(
    log_prob_B_T: Tensor, old_B_T: Tensor, advantage_B_1: Tensor, low: float, high: float, most: float
) -> Tensor:
    """(B, T) PPO's clipped loss; for a negative advantage no more than ``most`` times it (dual clip)."""
    ratio = torch.exp((log_prob_B_T - old_B_T).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO))
    clipped = torch.maximum(-advantage_B_1 * ratio, -advantage_B_1 * ratio.clamp(1 - low, 1 + high))
    return torch.where(advantage_B_1 < 0, torch.minimum(clipped, -advantage_B_1 * most), clipped)


def k3(log_prob_B_T: Tensor, reference_B_T: Tensor) -> Tensor:
    """(B, T) estimate of KL(learner || reference): verl's ``low_var_kl``."""
    log_ratio = (reference_B_T - log_prob_B_T).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO)
    return (log_ratio.exp() - log_ratio - 1).clamp(-MOST_K3, MOST_K3)


def truncated_weights(old_B_T: Tensor, sampler_B_T: Tensor, applies_B_T: Tensor, cap: float) -> Tensor:
    """(B, T) ``min(pi_old / pi_sampler, cap)`` where it applies, 1 elsewhere."""
    ratio = torch.exp((old_B_T - sampler_B_T).clamp(-MOST_LOG_RATIO, MOST_LOG_RATIO))
    return torch.where(applies_B_T > 0, ratio.clamp(max=cap), 1.0)


def entropy(logits_B_T_V: Tensor) -> Tensor:
    """(B, T) in nats."""
    log_prob_B_T_V = logits_B_T_V.log_softmax(-1)
    return -(log_prob_B_T_V.exp() * log_prob_B_T_V).sum(-1)


def picked(logits_B_T_V: Tensor, ids_B_T: Tensor) -> Tensor:
    """(B, T) log-probabilities of the ids."""
    return logits_B_T_V.log_softmax(-1).gather(-1, ids_B_T[..., None])[..., 0]


def token_weights(mask_B_T: Tensor, mode: str) -> Tensor:
    """(B, T) weights with which verl's ``loss_agg_mode`` adds token losses up: of all tokens, or of rows."""
    if mode == "token-mean":
        return mask_B_T / mask_B_T.sum().clamp(min=1)
    per_row_B_1 = mask_B_T.sum(1, keepdim=True).clamp(min=1) if mode == "seq-mean-token-mean" else 1.0
    return mask_B_T / per_row_B_1 / len(mask_B_T)
