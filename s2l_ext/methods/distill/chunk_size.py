"""``chunk_size: auto``: how many tokens' logits exist at a time.

Large chunks read the output matrices and their gradient less often; a few hundred MB of logits are enough for that
(``benchmarks/chunk_size.py`` has the curve). With 151,936 words that is 512 tokens.
"""

from __future__ import annotations

import logging

import psutil
import torch

from s2l_ext.methods.distill.config import tile_tokens
from s2l_ext.methods.distill.divergence_rows import CHUNK_SIZE, wide

logger = logging.getLogger(__name__)


def free_memory(device: torch.device) -> int | None:
    """Bytes that a tensor on ``device`` may take, those that PyTorch keeps for reuse included; None where nothing says
    them."""
    if device.type == "cpu":
        return int(psutil.virtual_memory().available)
    module = getattr(torch, device.type, None)
    try:
        free, _total = module.mem_get_info(device)  # type: ignore[union-attr]
        return int(free + module.memory_reserved(device) - module.memory_allocated(device))  # type: ignore[union-attr]
    except (AttributeError, RuntimeError):
        return None


def automatic(vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """The chunk for a vocabulary on a device, said in one log line. ``dtype``: of the output matrix."""
    free = free_memory(device)
    if free is None:
        chunk = min(CHUNK_SIZE, tile_tokens(vocab_size, wide(dtype).itemsize))
        logger.info("chunk_size=auto: the free memory of %s is not known, so %d tokens", device.type, chunk)
        return chunk
    chunk = tile_tokens(vocab_size, wide(dtype).itemsize, free)
    logger.info("chunk_size=auto: %d tokens (vocabulary %d, %.1f GB free)", chunk, vocab_size, free / 1e9)
    return chunk
