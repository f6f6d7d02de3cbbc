"""EXPO's Gaussian curriculum (arXiv 2605.09923, FG-ExPO arXiv 2605.11403): prompts near a 50 % pass rate come first.

The one change versus GRPO: which prompts a step trains on. State kept: pass rate and visits of every prompt, and the
random generator.
"""

from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum

__all__ = ["GaussianCurriculum"]
