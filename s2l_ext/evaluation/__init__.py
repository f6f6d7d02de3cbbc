"""What a model can do: sampling on held-out problems, pass@k, and paired comparisons. Imports neither verl nor ray."""

from s2l_ext.evaluation.metrics import pass_at_k

__all__ = ["pass_at_k"]
