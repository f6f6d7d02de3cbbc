"""Sparse-to-dense (arXiv 2605.12483): a divergence to a frozen teacher takes the place of the policy gradient.

The one change versus GRPO: the loss. Stage 2a is the forward KL on the teacher's rollouts (with ``s2l.explorer``),
stage 2b the reverse KL on the student's. State kept: none. ``worker.py`` puts the teacher beside the student.
"""

from typing import Any

__all__ = ["forward_kl", "reverse_kl"]


def __getattr__(name: str) -> Any:
    """The losses need torch, which the configuration alone must not load."""
    if name in __all__:
        from s2l_ext.methods.distill import divergences

        return getattr(divergences, name)
    raise AttributeError(name)
