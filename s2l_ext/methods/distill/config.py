"""The block ``s2l.distill``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from s2l_ext.config.limits import limited

TILE_BYTES = 320 * 10**6
"""Logits of a chunk in the dtype that is computed in."""
TILES = 5
"""That many exist at the peak."""
SHARE = 0.5
"""Of the free memory, at most: the backward pass of the layers below comes after."""
STEP = 64
"""Chunks are multiples of it, where they are not smaller: what matrix products are fast at."""
CHUNK = "chunk_size_max"
"""Name by which workers report the chunk that they used; verl takes the largest of a metric with this word."""


@dataclass(frozen=True)
class DistillConfig:
    """Sparse-to-dense: a divergence to a frozen teacher replaces the policy gradient."""

    teacher_path: str | None = None
    """Folder or hub id of the teacher; ``sft`` needs none."""
    loss: Literal["reverse_kl", "forward_kl", "jsd", "sampled_k1", "sft"] = "reverse_kl"
    """``reverse_kl``: on the student's rows (stage 2b). ``forward_kl``: on the teacher's rows (stage 2a, with
    ``s2l.explorer``). ``jsd``: between both. ``sampled_k1``: policy gradient of the reverse KL on sampled tokens.
    ``sft``: hard labels."""
    teacher_placement: Literal["local", "server"] = "local"
    """``local``: the whole teacher lies beside the actor. ``server``: verl's teacher servers send their ``topk``
    tokens."""
    temperature: float = limited(1.0, above=0)
    """Divides the logits of both models."""
    jsd_beta: float = limited(0.5, above=0, below=1)
    """Weight of the teacher in ``jsd``."""
    correct_only: bool = False
    """Train only on rows with a right answer."""
    chunk_size: int | Literal["auto"] = limited("auto", at_least=1)
    """Tokens whose logits exist at a time. ``auto`` follows from vocabulary, dtype and free memory."""
    topk: int = limited(128, at_least=1)
    """Teacher tokens per position (``server``)."""
    nnodes: int = limited(1, at_least=1)
    """Nodes with teacher GPUs (``server``)."""
    n_gpus_per_node: int = limited(1, at_least=1)
    """Teacher GPUs of each such node (``server``)."""
    tensor_model_parallel_size: int = limited(1, at_least=1)
    """GPUs that share one copy of the teacher (``server``)."""

    @property
    def in_actor(self) -> bool:
        """The loss is computed by this package's engine, not by verl's distillation."""
        return self.teacher_placement == "local"


def tile_tokens(vocab_size: int, entry_bytes: int, free_bytes: int | None = None) -> int:
    """Tokens whose logits fill one tile, 1 at least. ``entry_bytes``: of a logit. ``free_bytes``: that the tiles may
    share; None asks for nothing but the tile's own size."""
    tile = TILE_BYTES if free_bytes is None else min(TILE_BYTES, SHARE * free_bytes / TILES)
    tokens = int(tile // (vocab_size * entry_bytes))
    return max(1, tokens - tokens % STEP if tokens > STEP else tokens)
