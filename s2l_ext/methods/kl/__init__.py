"""EXPO's accuracy-conditioned KL (arXiv 2605.09923, FG-ExPO arXiv 2605.11403).

The one change versus GRPO: the coefficient of the KL term in the loss is chosen anew for each step, from the accuracy
of its own rows. State kept: none, but for ``type: adaptive_target``, whose coefficient is a state.
"""

from s2l_ext.methods.kl.coefficient import AccuracyConditionedKL, AdaptiveTargetKL, ConstantKL

__all__ = ["AccuracyConditionedKL", "AdaptiveTargetKL", "ConstantKL"]
