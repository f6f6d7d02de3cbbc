"""Is the explorer a smaller sibling of the learner?"""

from __future__ import annotations

from s2l_ext.config.model_files import parameter_count
from s2l_ext.data.tokenizers import compare
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.training.inputs import LEARNER_KEY, Inputs, check_model_path

EXPLORER_KEY = "s2l.explorer.model_path"


def check_models(explorer: LiveExplorer, inputs: Inputs) -> list[str]:
    """Compare a live explorer's model with the learner's.

    Raises:
        ConfigError: no such model folder.
        TokenizerMismatch: the two speak different tokens.
    """
    learner_path = inputs.cfg.actor_rollout_ref.model.path
    check_model_path(EXPLORER_KEY, explorer.model_path, inputs.trust)
    warnings = compare(learner_path, explorer.model_path, LEARNER_KEY, EXPLORER_KEY, inputs.trust, both_render=False)
    teaches = inputs.needed.distill is not None
    return warnings if teaches else [*warnings, *_size_warnings(learner_path, explorer.model_path)]


def _size_warnings(learner_path: str, explorer_path: str) -> list[str]:
    learner, explorer = parameter_count(learner_path), parameter_count(explorer_path)
    if learner is None or explorer is None or explorer <= learner:
        return []
    return [
        f"the explorer is larger than the learner: {EXPLORER_KEY}={explorer_path} has {explorer:,} parameters, "
        f"{LEARNER_KEY}={learner_path} has {learner:,}. S2L-PO explores with the smaller sibling; are they swapped?"
    ]
