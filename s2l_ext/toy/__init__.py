"""The toy world: problems, tokenizer and tiny models on which the whole pipeline learns in minutes."""

from s2l_ext.toy.world import ToyWorld, prepare

__all__ = ["ToyWorld", "prepare"]
