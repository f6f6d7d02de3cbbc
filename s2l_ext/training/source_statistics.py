"""What each source contributed to a step: its rows, and the sums over their tokens that the workers' loss reported."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from s2l_ext.training.batch_fields import EXPLORER, GUIDED, LEARNER, PLAIN, SOURCES, SUM_PREFIX

if TYPE_CHECKING:
    from s2l_ext.training.step import StepRows

KINDS_OF = {LEARNER: (GUIDED, PLAIN), EXPLORER: (EXPLORER,)}
OVER_ROWS = {"reward": "reward_mean"}
OVER_READ = {"tokens": "response_length_mean", "advantage": "advantage_mean"}
OVER_TOKENS = {
    "ratio": "ppo_ratio_mean",
    "clipped": "ppo_clip_fraction",
    "weight": "applied_weight_mean",
    "is_weight": "is_weight_mean",
    "is_clamped": "is_clamped_fraction",
}
OVER_SAMPLED = {"is_ratio": "is_ratio_mean", "k3": "kl_sampler_learner_k3"}
"""Sums that the workers report -> the mean over rows, rows in the loss, tokens or sampled tokens that they become."""
OF_GUIDANCE = {
    "prefix_in_loss": "prefix_tokens_in_loss",
    "continuation": "continuation_tokens",
    "continuation_in_loss": "continuation_tokens_in_loss",
}

Sums = dict[str, float]


def row_statistics(rows: StepRows) -> dict[str, float]:
    """``s2l/source/<source>/...`` from the rows themselves: their number, accuracy, sampled tokens and seconds of
    generation. Raises ValueError: a row of a source that there is not."""
    source_B, acc_B = np.array(rows.source_B, dtype=object), rows.acc_B
    seconds_B = None if rows.seconds_B is None else np.array(rows.seconds_B)
    unknown = sorted(set(rows.source_B) - set(SOURCES))
    if unknown:
        raise ValueError(f"rows from unknown source {unknown}; known sources: {list(SOURCES)}")
    metrics: dict[str, float] = {}
    for name in SOURCES:
        own_B, prefix = source_B == name, f"s2l/source/{name}"
        metrics[f"{prefix}/rows"] = float(own_B.sum())
        if not own_B.any():
            continue
        metrics |= {} if acc_B is None else {f"{prefix}/acc_mean": float(acc_B[own_B].mean())}
        if rows.length_B is not None:
            sampled_B = np.subtract(rows.length_B, rows.prefix_len_B)
            metrics[f"{prefix}/tokens"] = float(sampled_B[own_B].sum())
        if seconds_B is not None:
            metrics[f"{prefix}/gen_seconds_sum"] = float(seconds_B[own_B].sum())
            metrics[f"{prefix}/gen_seconds_max"] = float(seconds_B[own_B].max())
    return metrics


def take_sums(metrics: dict[str, Any], rows: int) -> dict[str, Sums]:
    """Take the workers' sums over a step out of ``metrics``, by kind of row. ``rows``: of the step, padding included.
    verl gives a mean over workers and mini-batches; the rows that the loss counted say of how many."""
    prefix = f"actor/{SUM_PREFIX}/"
    counted = metrics.pop(f"{prefix}rows", None)
    parts = rows / counted if counted else 0.0
    found: dict[str, Sums] = {}
    for kind in (EXPLORER, GUIDED, PLAIN):
        names = [name for name in metrics if name.startswith(f"{prefix}{kind}/")]
        sums = {name.rpartition("/")[2]: float(metrics.pop(name)) for name in names}
        found[kind] = {name: value if name.endswith("_max") else value * parts for name, value in sums.items()}
    return found if counted else {}


def token_statistics(sums: dict[str, Sums], rows: StepRows) -> dict[str, float]:
    """``s2l/source/<source>/...`` of a step's tokens: reward, length, advantage, ratios and weights of each source.
    ``sums``: by kind of row, as :func:`take_sums` gives them."""
    metrics: dict[str, float] = {}
    for source, count in Counter(rows.source_B).items():
        total = _together([sums[kind] for kind in KINDS_OF[source]])
        found = _means(total, OVER_ROWS, count) | _means(total, OVER_TOKENS, total["tokens"])
        found |= _means(total, OVER_READ, total["read"]) | _means(total, OVER_SAMPLED, total.get("sampled", 0.0))
        if "advantage" in total and total["read"]:
            found["advantage_std"] = _spread(total)
        if total.get("sampled"):
            found["is_ratio_max"] = total["is_ratio_max"]
        metrics |= {f"s2l/source/{source}/{name}": value for name, value in found.items()}
    return metrics


def guidance_statistics(sums: dict[str, Sums], rows: StepRows) -> dict[str, float]:
    """``s2l/guidance/...`` of a step's tokens: where guidance ends and what the loss reads of it; how far advantages of
    guided and of the learner's other rows are spread (population standard deviation)."""
    total = _together(list(sums.values()))
    metrics = {f"s2l/guidance/{name}": total[given] for given, name in OF_GUIDANCE.items()}
    metrics["s2l/guidance/prefix_tokens"] = float(sum(rows.prefix_len_B))
    for name, kind in (("guided", GUIDED), ("unguided", PLAIN)):
        if sums[kind].get("read") and "advantage" in sums[kind]:
            metrics[f"s2l/guidance/advantage_std_{name}"] = _spread(sums[kind])
    return metrics


def _together(parts: list[Sums]) -> Sums:
    names = {name: None for part in parts for name in part}
    return {name: (max if name.endswith("_max") else sum)(part.get(name, 0.0) for part in parts) for name in names}


def _means(total: Sums, names: dict[str, str], count: float) -> dict[str, float]:
    return {name: total[given] / count for given, name in names.items() if given in total} if count else {}


def _spread(total: Sums) -> float:
    mean = total["advantage"] / total["read"]
    return math.sqrt(max(0.0, total["advantage_squared"] / total["read"] - mean**2))
