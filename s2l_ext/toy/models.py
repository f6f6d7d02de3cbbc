"""Tiny Qwen3 models of one family: same tokenizer, same head size, three widths and depths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from s2l_ext.errors import DataError
from s2l_ext.toy.tokenizer import EOS_ID, MAX_LENGTH, PAD_ID, VOCABULARY

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

HEAD_DIM = 32


@dataclass(frozen=True)
class ModelSize:
    """Width (a multiple of 32) and depth; the MLP is three times as wide."""

    hidden: int
    layers: int


SIZES: dict[str, ModelSize] = {"small": ModelSize(64, 2), "medium": ModelSize(128, 4), "large": ModelSize(192, 6)}


def get_size(name: str) -> ModelSize:
    """Raises DataError for a size that does not exist."""
    if name not in SIZES:
        raise DataError(f"size={name!r}: there is no such toy model. Choose from {', '.join(SIZES)}.")
    return SIZES[name]


def build_model(size: ModelSize, seed: int) -> Qwen3ForCausalLM:
    """A randomly initialised model in float32; the same weights for the same seed."""
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()  # one for each file of weights says nothing for models this small
    heads = size.hidden // HEAD_DIM
    config = Qwen3Config(
        vocab_size=len(VOCABULARY),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        head_dim=HEAD_DIM,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=EOS_ID, pad_token_id=PAD_ID)
    return model
