"""The block ``s2l.distill``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2l_ext.config.limits import limited


@dataclass(frozen=True)
class DistillConfig:
    """Sparse-to-dense: a divergence to a frozen teacher takes the place of the policy gradient.

    ``loss`` is read on the rows that the step sampled: ``forward_kl`` on the teacher's (stage 2a, with
    ``s2l.explorer``), ``reverse_kl`` on the student's (2b), ``sampled_k1`` its policy gradient on sampled tokens,
    ``sft`` their hard labels (needs no teacher). ``jsd_beta`` weighs the teacher in ``jsd``. ``teacher_placement:
    local`` puts the whole teacher beside the actor, ``server`` asks verl's teacher servers for its ``topk`` tokens.
    ``chunk_size``: tokens whose logits exist at a time. ``temperature`` divides both models' logits.
    """

    teacher_path: str | None = None
    loss: Literal["reverse_kl", "forward_kl", "jsd", "sampled_k1", "sft"] = "reverse_kl"
    teacher_placement: Literal["local", "server"] = "local"
    temperature: float = limited(1.0, above=0)
    jsd_beta: float = limited(0.5, above=0, below=1)
    correct_only: bool = False
    chunk_size: int = limited(256, at_least=1)
    topk: int = limited(128, at_least=1)
    nnodes: int = limited(1, at_least=1)
    n_gpus_per_node: int = limited(1, at_least=1)
    tensor_model_parallel_size: int = limited(1, at_least=1)

    @property
    def in_actor(self) -> bool:
        """The loss is computed by this package's engine, not by verl's distillation."""
        return self.teacher_placement == "local"
