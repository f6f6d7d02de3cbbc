"""Does the teacher have the student's tokens, and is it the larger model?"""

from __future__ import annotations

from s2l_ext.config.model_files import parameter_count
from s2l_ext.data.tokenizers import compare
from s2l_ext.training.inputs import LEARNER_KEY, Inputs, check_model_path

TEACHER_KEY = "s2l.distill.teacher_path"


def check_teacher(inputs: Inputs) -> list[str]:
    """It scores token ids that the learner's template rendered, or that a sampler was given in that form.

    Raises:
        ConfigError: no such model folder.
        TokenizerMismatch: it has other tokens.
    """
    distill, student_path = inputs.needed.distill, inputs.cfg.actor_rollout_ref.model.path
    if distill is None or distill.teacher_path is None:
        return []
    check_model_path(TEACHER_KEY, distill.teacher_path, inputs.trust)
    warnings = compare(student_path, distill.teacher_path, LEARNER_KEY, TEACHER_KEY, inputs.trust, both_render=False)
    student, teacher = parameter_count(student_path), parameter_count(distill.teacher_path)
    if student is None or teacher is None or teacher >= student:
        return warnings
    return [
        *warnings,
        f"the teacher is smaller than the student: {TEACHER_KEY}={distill.teacher_path} has {teacher:,} parameters, "
        f"{LEARNER_KEY}={student_path} has {student:,}. Sparse-to-dense distils the larger model; are they swapped?",
    ]
