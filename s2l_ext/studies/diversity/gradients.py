"""Do the rollouts of a group pull the learner one way? Variance and cosine of per-rollout policy gradients.

S2L-PO (arXiv 2605.30789, section 3.1, Eq. 15): g_i = A_i * grad log pi_learner(o_i | q), ratio 1, for
any sampler of o_i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from s2l_ext.errors import ConfigError
from s2l_ext.studies.diversity.curves import Floats
from s2l_ext.studies.diversity.sets import Ids
from s2l_ext.studies.diversity.tokens import TokenModel

ALL, LAST_LAYER = "all", "last_layer"
CHOICES = (ALL, LAST_LAYER)
ALL_UP_TO = 50_000_000
SKETCH_ABOVE = 1 << 22
SKETCH_SIZE = 1 << 20
"""Products of sketches are unbiased; a cosine's error is about 1 / sqrt(size), 0.001."""
ADVANTAGE_EPSILON = 1e-6
MEASURES = ("relative_variance", "cosine", "mean_gradient_norm", "gradient_norm")


def group_advantages(scores: Sequence[float]) -> Floats:
    """(G,) GRPO: score minus the group's mean over its standard deviation (G - 1, as verl) plus 1e-6.

    Exactly 0 where all scores are equal: the mean of three 0.1 is not 0.1, and the rest would pass for a signal.
    """
    values = np.asarray(scores, dtype=float)
    if np.ptp(values) == 0:
        return np.zeros_like(values)
    return (values - values.mean()) / (values.std(ddof=1) + ADVANTAGE_EPSILON)


def group_statistics(products_G_G: Floats) -> dict[str, float]:
    """Statistics of G vectors from their inner products.

    Returns:
        ``relative_variance``: trace of the covariance (G - 1) over the mean squared norm; 1 for orthogonal vectors, 0
        for equal ones. ``cosine``: mean over pairs of vectors that are not 0. ``mean_gradient_norm``: norm of the mean
        vector. ``gradient_norm``: root of the mean squared norm. All nan where all vectors are 0.
    """
    products = np.asarray(products_G_G, dtype=float)
    size, squares = len(products), products.diagonal()
    total = float(squares.sum())
    if total <= 0:
        return dict.fromkeys(MEASURES, math.nan)
    of_mean = max(float(products.sum()), 0.0) / size**2
    return {
        "relative_variance": (total - size * of_mean) / (size - 1) / (total / size),
        "cosine": _mean_cosine(products),
        "mean_gradient_norm": math.sqrt(of_mean),
        "gradient_norm": math.sqrt(total / size),
    }


def _mean_cosine(products_G_G: Floats) -> float:
    there = products_G_G.diagonal() > 0
    kept = products_G_G[np.ix_(there, there)]
    if len(kept) < 2:
        return math.nan
    norms = np.sqrt(kept.diagonal())
    above = np.triu_indices(len(kept), 1)
    return float((kept / np.outer(norms, norms))[above].mean())


class GradientReader:
    """Score gradients of responses over a choice of the learner's parameters.

    Args:
        choice: ``all``, ``last_layer`` (the last decoder block), or None: all up to 50 M parameters.
        temperature: divides the logits.

    Raises:
        ConfigError: the model's blocks cannot be found.
    """

    def __init__(self, model: TokenModel, choice: str | None, temperature: float) -> None:
        self.model, self.temperature = model, temperature
        every = list(model.model.parameters())
        small = sum(parameter.numel() for parameter in every) <= ALL_UP_TO
        self.choice = choice or (ALL if small else LAST_LAYER)
        self.parameters: list[Parameter] = every if self.choice == ALL else list(_last_block(model.body).parameters())
        for parameter in self.parameters:
            parameter.requires_grad_(True)
        self.count = sum(parameter.numel() for parameter in self.parameters)
        self.sketched = self.count > SKETCH_ABOVE

    def describe(self) -> dict[str, Any]:
        return {
            "parameters": self.choice,
            "count": self.count,
            "sketch": SKETCH_SIZE if self.sketched else None,
            "temperature": self.temperature,
        }

    def products(self, prompt: Ids, responses: Sequence[Ids]) -> Floats:
        """(G, G) inner products of the score gradients grad log pi(o | prompt)."""
        vectors_G_D = torch.stack([self.vector(prompt, response) for response in responses])
        return np.asarray((vectors_G_D @ vectors_G_D.T).double().cpu().numpy())

    def vector(self, prompt: Ids, response: Ids) -> Tensor:
        """The score gradient of one response, flat; sketched when there are too many parameters."""
        value = self.model.log_prob(prompt, response, self.temperature)
        parts = torch.autograd.grad(value, self.parameters, allow_unused=True, materialize_grads=True)
        if not self.sketched:
            return torch.cat([part.flatten() for part in parts])
        return count_sketch([part.flatten() for part in parts], SKETCH_SIZE)


def count_sketch(parts: Sequence[Tensor], size: int) -> Tensor:
    """(size,) each coordinate added to a random place with a random sign, the same at every call (Charikar 2002)."""
    generator = torch.Generator(parts[0].device).manual_seed(0)
    sketch = torch.zeros(size, device=parts[0].device)
    for part in parts:
        drawn = torch.randint(2 * size, part.shape, generator=generator, device=part.device)
        sketch.index_add_(0, drawn // 2, part.float() * (2 * (drawn % 2) - 1))
    return sketch


def _last_block(body: Any) -> torch.nn.Module:
    blocks = next((found for name in ("layers", "h", "blocks") if (found := getattr(body, name, None))), None)
    if not isinstance(blocks, torch.nn.ModuleList):
        raise ConfigError(
            f"--gradient-parameters {LAST_LAYER}: {type(body).__name__} shows no list of decoder blocks. Use "
            f"--gradient-parameters {ALL}."
        )
    return blocks[-1]


def problem_statistics(products_G_G: Floats, scores: Sequence[float]) -> dict[str, dict[str, float]]:
    """Of one problem and one kind of rows: ``advantage`` (A_i times the score gradient; all nan when all scores are
    equal) and ``score`` (the score gradient alone)."""
    advantages = group_advantages(scores)
    weighted = np.outer(advantages, advantages) * products_G_G
    return {"advantage": group_statistics(weighted), "score": group_statistics(products_G_G)}
