"""S2L-PO (arXiv 2605.30789): a frozen smaller model of the same family samples part of every group.

The one change versus GRPO: who samples. The first ``G_w`` of ``G`` rollouts of a prompt are the explorer's; ``G_w``
falls to 0. Every row has two log-probabilities. ``rollout_log_probs`` are those of the model that sampled it, from vLLM
(only with ``calculate_log_probs``). ``old_log_probs`` are always the learner's, so PPO's ratio starts at 1. The
correction ``truncated_is`` weighs tokens by the gap between the two.
State kept: which stored rollouts were taken (``source: offline``); none with a live explorer.
``serving/`` runs the explorer's vLLM servers.
"""

from s2l_ext.methods.explorer.schedule import ConstantSchedule, HardSwitch, LinearAnnealing

__all__ = ["ConstantSchedule", "HardSwitch", "LinearAnnealing"]
