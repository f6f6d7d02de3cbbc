"""What a training stage gave and what it took, from its metrics. Estimates, in the usual units of language models.

With ``P`` parameters of the trained model, ``P_E`` of the explorer, ``P_T`` of the teacher, and ``N`` tokens of all
steps (prompts and responses, verl's ``perf/total_num_tokens``):

- training ``6 * P * N`` FLOPs, forward and backward;
- sampling ``2 * P_E * N_E + 2 * P * (N - N_E)``, where ``N_E`` is the explorer's part of a step's tokens, by its part
  of the response tokens;
- teacher scoring ``2 * P_T * N``, when the loss asks a teacher.

Rows that an explorer sampled beforehand cost nothing here: the stage that stored them has paid.

Left out: passes for old log-probabilities and a reference model (``2 * P * N`` each), validation, attention over long
contexts, and tokens of an explorer or teacher that no step used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from s2l_ext.config.model_files import parameter_count
from s2l_ext.report.results import Metrics, is_accuracy, read_metrics
from s2l_ext.training.run_log import FILE_NAME, TRAINING_MARK

TOKENS = "perf/total_num_tokens"
STEP_SECONDS = "timing_s/step"
EXPLORER_TOKENS, LEARNER_TOKENS = "s2l/source/explorer/tokens", "s2l/source/learner/tokens"
RESULT_PREFIXES = ("val-core/", "s2l/distill/", "critic/score/mean", "critic/rewards/mean")
ATTEMPTS = "metrics*.jsonl"
"""The run's metrics, those of steps that were repeated, and those of attempts that left no checkpoint."""

HELD_STEPS = ("timing", "seconds")


def training_result(run: Path, accounting: dict[str, Any]) -> dict[str, Any]:
    """Final metrics, steps, tokens and estimated FLOPs of a finished run; the same however often it was interrupted."""
    lines = read_metrics(run / FILE_NAME)
    steps = _training_steps(lines)
    tokens = {step: float(data.get(TOKENS) or 0) for step, data in steps.items()}
    return {
        "steps": len(steps),
        "tokens": int(sum(tokens.values())),
        "accuracy": final_accuracy(lines),
        "metrics": _final_metrics(lines),
        "flops": estimate_flops(steps, accounting),
    }


def training_seconds(run: Path, accelerators: int) -> float:
    """Accelerator seconds of all steps, those that were repeated after an interruption included."""
    lines = [line for file in sorted(run.glob(ATTEMPTS)) for line in read_metrics(file)]
    return accelerators * sum(float(data.get(STEP_SECONDS) or 0) for _, data in lines)


def sampling_result(tokens: int, model: str) -> dict[str, Any]:
    """Tokens (prompts and responses) and estimated FLOPs of a stage that only samples."""
    flops = _times(2 * tokens, _size(model))
    return {"tokens": tokens, "flops": {"sampling": flops, "total": flops}}


def _training_steps(lines: Metrics) -> dict[int, dict[str, Any]]:
    """The last line of every training step; validation has lines of its own."""
    return {step: data for step, data in lines if TRAINING_MARK in data}


def final_accuracy(lines: Metrics) -> float | None:
    """Mean over the data sources of the last validation; None when there was none."""
    found = [[v for key, v in data.items() if is_accuracy(key) and v is not None] for _, data in lines]
    last = next((values for values in reversed(found) if values), None)
    return float(np.mean(last)) if last else None


def _final_metrics(lines: Metrics) -> dict[str, Any]:
    """Last value of every metric that tells what was learned; seconds do not."""
    final: dict[str, Any] = {}
    for _, data in lines:
        final |= {key: value for key, value in data.items() if key.startswith(RESULT_PREFIXES)}
    return {key: value for key, value in sorted(final.items()) if not any(mark in key for mark in HELD_STEPS)}


def estimate_flops(steps: dict[int, dict[str, Any]], accounting: dict[str, Any]) -> dict[str, float | None]:
    """FLOPs by purpose and in all; None where a model's size cannot be told."""
    size = {role: _size(accounting.get(role)) for role in ("model", "explorer", "teacher")}
    tokens = sum(float(data.get(TOKENS) or 0) for data in steps.values())
    explored = sum(_explored(data) for data in steps.values())
    paid_before = bool(accounting.get("stored"))
    explorers = 0.0 if paid_before else _times(2 * explored, size["explorer"])
    parts = {
        "training": _times(6 * tokens, size["model"]),
        "sampling": _sum([_times(2 * (tokens - explored), size["model"]), explorers]),
        "teacher_scoring": _times(2 * tokens, size["teacher"]) if accounting.get("teacher") else 0.0,
    }
    return {**parts, "total": _sum(list(parts.values()))}


def _explored(data: dict[str, Any]) -> float:
    """The explorer's part of a step's tokens, prompts split like responses."""
    explorer, learner = (float(data.get(key) or 0) for key in (EXPLORER_TOKENS, LEARNER_TOKENS))
    return float(data.get(TOKENS) or 0) * explorer / (explorer + learner) if explorer else 0.0


def _size(path: str | None) -> int | None:
    return parameter_count(path) if path else None


def _times(tokens: float, size: int | None) -> float | None:
    if tokens == 0:
        return 0.0
    return None if size is None else float(tokens * size)


def _sum(parts: list[float | None]) -> float | None:
    return None if None in parts else float(sum(part for part in parts if part is not None))
