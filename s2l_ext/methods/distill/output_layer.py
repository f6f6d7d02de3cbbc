"""Are a model's logits its output matrix times its last hidden state? Code that multiplies the two itself needs that.

Softcaps and scales after the output layer change logits with many names (``final_logit_softcapping``, ``logit_scale``,
``lm_head_multiplier``), so that the numbers are compared and no names. A cap hardly changes small logits: hidden states
are scaled up on their way into the layer. State kept: none.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

LARGEST_LOGIT = 50.0
"""Logits of real models reach it; the caps in use lie between 15 and 50."""
TOLERANCE = 1e-3
"""Of the largest logit. A plain layer's difference is 0, or the rounding of its dtype where two kernels multiply."""
PROBE_TOKENS = 4


def probe_ids(device: Any) -> Tensor:
    """(1, 4) token ids that every vocabulary has."""
    return torch.arange(PROBE_TOKENS, device=device)[None]


@contextmanager
def amplified(layer: torch.nn.Module) -> Iterator[None]:
    """Within the block the hidden states of each call of ``layer`` are scaled so that its largest logit is 50."""

    def scale(module: torch.nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        hidden, *rest = args
        largest = (hidden @ module.weight.T).abs().max().float()  # type: ignore[operator, union-attr]
        return (hidden * (LARGEST_LOGIT / largest.clamp_min(1e-12)).to(hidden.dtype), *rest)

    hook = layer.register_forward_pre_hook(scale)
    try:
        yield
    finally:
        hook.remove()


def tolerance(dtype: torch.dtype) -> float:
    """Share of the largest logit by which a plain layer's numbers in ``dtype`` may differ."""
    return max(TOLERANCE, 2 * torch.finfo(dtype).eps)


def largest_difference(logits: Tensor, product: Tensor) -> float:
    """Of (..., V) logits and the product that they should be, as a share of the product's largest logit.

    Infinite where the shapes differ or a number is not finite.
    """
    if logits.shape != product.shape:
        return float("inf")
    wanted = product.float()
    share = (logits.float() - wanted).abs().max() / wanted.abs().max()
    return float(share) if bool(torch.isfinite(share)) else float("inf")
