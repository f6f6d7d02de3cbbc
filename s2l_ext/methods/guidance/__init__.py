"""G2RPO-A (arXiv 2508.13023): part of every group continues the first l tokens of a reasoning trace.

The one change versus GRPO: what a rollout starts from. ``l`` follows the accuracy; guidance tokens are left out of the
loss unless ``loss_on_guidance``. State kept: the length and the accuracies of the last steps.
"""

from typing import Any

from s2l_ext.methods.guidance.length import (
    AdaptiveGuidance,
    AdditiveGuidance,
    ConcaveDecay,
    Constant,
    LinearDecay,
    StepwiseDecay,
)

__all__ = [
    "AdaptiveGuidance",
    "AdditiveGuidance",
    "ConcaveDecay",
    "Constant",
    "LinearDecay",
    "StepwiseDecay",
    "usable_text",
]


def __getattr__(name: str) -> Any:
    """``usable_text`` reads data files' modules, which the configuration alone must not load."""
    if name == "usable_text":
        from s2l_ext.methods.guidance.client import usable_text

        return usable_text
    raise AttributeError(name)
