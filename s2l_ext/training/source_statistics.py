"""What each source contributed to a step, and importance weights for rows that the learner did not sample.

Shapes: B rows, T response tokens. A log-ratio is ``log pi_learner(token) - log pi_sampler(token)``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from s2l_ext.training.batch_fields import EXPLORER, LEARNER, SOURCES

Floats = NDArray[np.floating]
MAX_EXPONENT = 20.0


def source_statistics(
    source: ArrayLike,
    reward: ArrayLike,
    acc: ArrayLike | None,
    response_length: ArrayLike,
    advantage: ArrayLike,
    gen_seconds: ArrayLike,
    log_ratio_B_T: ArrayLike | None = None,
    mask_B_T: ArrayLike | None = None,
    sources: Sequence[str] = SOURCES,
) -> dict[str, float]:
    """Metrics ``s2l/source/<source>/...`` of one step. A source without rows gives ``rows`` 0 and nothing else.

    Args:
        source: (B,) name of the sampler of each row.
        reward, acc, response_length, advantage, gen_seconds: (B,) reward, verifier accuracy (None when the reward
            function gives none), response tokens, mean advantage over the row's tokens, seconds of generation.
        log_ratio_B_T: (B, T) learner minus sampler; None leaves the ``sampler_*`` metrics out.
        mask_B_T: (B, T) 1 on response tokens; needed with ``log_ratio_B_T``. Values outside it are not read.

    Raises:
        ValueError: a row of a source that is not in ``sources``, or a log-ratio without its mask.
    """
    names = np.asarray(source, dtype=object)
    unknown = sorted({str(name) for name in names} - set(sources))
    if unknown:
        raise ValueError(f"rows from unknown source {unknown}; known sources: {list(sources)}")
    means = {
        "reward_mean": reward,
        "acc_mean": acc,
        "response_length_mean": response_length,
        "advantage_mean": advantage,
    }
    columns = {name: np.asarray(values, dtype=float) for name, values in means.items() if values is not None}
    seconds = np.asarray(gen_seconds, dtype=float)
    ratio = None if log_ratio_B_T is None else _log_ratio_and_mask(log_ratio_B_T, mask_B_T)
    metrics: dict[str, float] = {}
    for name in sources:
        rows = names == name
        prefix = f"s2l/source/{name}"
        metrics[f"{prefix}/rows"] = float(rows.sum())
        if not rows.any():
            continue
        metrics.update({f"{prefix}/{key}": float(values[rows].mean()) for key, values in columns.items()})
        metrics[f"{prefix}/advantage_std"] = float(columns["advantage_mean"][rows].std())
        metrics[f"{prefix}/tokens"] = float(columns["response_length_mean"][rows].sum())
        metrics[f"{prefix}/gen_seconds_sum"] = float(seconds[rows].sum())
        metrics[f"{prefix}/gen_seconds_max"] = float(seconds[rows].max())
        if ratio is not None:
            metrics.update(_sampler_metrics(prefix, ratio[0][rows][ratio[1][rows]]))
    return metrics


def guided_advantage_spread(advantage: ArrayLike, guided: ArrayLike, unguided: ArrayLike) -> dict[str, float]:
    """Population standard deviation of the advantages of guided and of unguided rows; a kind without rows has none.

    Args:
        advantage: (B,) mean advantage over the row's tokens.
        guided, unguided: (B,) true for rows that continue a trace; for the learner's rows from the prompt alone.
    """
    values, kinds = np.asarray(advantage, dtype=float), {"guided": guided, "unguided": unguided}
    rows = {f"s2l/guidance/advantage_std_{name}": values[np.asarray(kind, bool)] for name, kind in kinds.items()}
    return {name: float(chosen.std()) for name, chosen in rows.items() if chosen.size}


def _log_ratio_and_mask(log_ratio_B_T: ArrayLike, mask_B_T: ArrayLike | None) -> tuple[Floats, NDArray[np.bool_]]:
    if mask_B_T is None:
        raise ValueError("log_ratio_B_T needs mask_B_T: padding has no log-probability")
    return np.asarray(log_ratio_B_T, dtype=float), np.asarray(mask_B_T) > 0


def _sampler_metrics(prefix: str, log_ratio: Floats) -> dict[str, float]:
    """Ratio and k3 over valid tokens: k3 = exp(d) - 1 - d estimates KL(sampler || learner), Schulman 2020."""
    if log_ratio.size == 0:
        return {}
    clipped = np.clip(log_ratio, -MAX_EXPONENT, MAX_EXPONENT)
    ratio = np.exp(clipped)
    return {
        f"{prefix}/is_ratio_mean": float(ratio.mean()),
        f"{prefix}/is_ratio_max": float(ratio.max()),
        f"{prefix}/kl_sampler_learner_k3": float((np.expm1(clipped) - clipped).mean()),
    }


def truncated_importance_weights(
    log_ratio_B_T: ArrayLike, mask_B_T: ArrayLike, is_explorer_B: ArrayLike, cap: float = 2.0
) -> tuple[Floats, dict[str, float]]:
    """Token weights ``min(exp(log_ratio), cap)`` on the explorer's response tokens and exactly 1 elsewhere.

    Args:
        log_ratio_B_T: (B, T) learner's old log-probability minus the sampler's. Values outside the mask are not read.
        mask_B_T: (B, T) 1 on response tokens.
        is_explorer_B: (B,) true where the explorer sampled the row.
        cap: largest weight, > 0.

    Returns:
        (B, T) weights, and ``s2l/source/<source>/{is_weight_mean,is_clamped_fraction}`` of sources that have tokens.
    """
    if not cap > 0:
        raise ValueError(f"cap={cap} must be > 0: it is the largest importance weight (s2l.explorer.is_cap)")
    log_ratio, mask = _log_ratio_and_mask(log_ratio_B_T, mask_B_T)
    explorer_B = np.asarray(is_explorer_B, dtype=bool)
    applies = mask & explorer_B[:, None]
    ratio = np.exp(np.clip(np.where(applies, log_ratio, 0.0), -MAX_EXPONENT, MAX_EXPONENT))
    clamped = applies & (ratio > cap)
    weights = np.where(applies, np.minimum(ratio, cap), 1.0)
    stats: dict[str, float] = {}
    for name, rows in ((LEARNER, ~explorer_B), (EXPLORER, explorer_B)):
        tokens = mask & rows[:, None]
        if tokens.any():
            stats[f"s2l/source/{name}/is_weight_mean"] = float(weights[tokens].mean())
            stats[f"s2l/source/{name}/is_clamped_fraction"] = float(clamped[tokens].mean())
    return weights, stats
