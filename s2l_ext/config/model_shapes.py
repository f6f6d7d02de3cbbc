"""Sizes of dense decoders: what ``config.json`` says, and a table of the families that recipes name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

_EXPERTS = ("num_experts", "num_local_experts", "n_routed_experts")
_OTHER_ATTENTION = ("kv_lora_rank", "sliding_window_pattern", "full_attention_interval")
_VARIANT = re.compile(r"-(Base|Instruct|Chat|it)$", re.IGNORECASE)


@dataclass(frozen=True)
class ModelShape:
    """A decoder with grouped keys, a gated MLP and one kind of layer. ``query`` and ``key`` are the widths of all heads
    together; ``tied``: the output matrix is the embedding; ``positions`` is None where it is not said."""

    hidden: int
    layers: int
    query: int
    key: int
    intermediate: int
    vocab: int
    tied: bool
    positions: int | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> ModelShape | None:
        """Read ``config.json``; None for what is no such decoder: experts, or layers that cache no keys."""
        config = config.get("text_config") or config
        kinds = set(config.get("layer_types") or ()) - {"full_attention"}
        if kinds or any(config.get(name) for name in (*_EXPERTS, *_OTHER_ATTENTION)):
            return None
        try:
            hidden, heads = config["hidden_size"], config["num_attention_heads"]
            size = config.get("head_dim") or hidden // heads
            return cls(
                hidden,
                config["num_hidden_layers"],
                heads * size,
                (config.get("num_key_value_heads") or heads) * size,
                config["intermediate_size"],
                config["vocab_size"],
                bool(config.get("tie_word_embeddings")),
                config.get("max_position_embeddings"),
            )
        except (KeyError, TypeError, ZeroDivisionError):
            return None

    @property
    def matrix(self) -> int:
        """Numbers of the output matrix, or of the embedding."""
        return self.vocab * self.hidden

    @property
    def layer(self) -> int:
        """Numbers of one layer's matrices."""
        return 2 * self.hidden * (self.query + self.key) + 3 * self.hidden * self.intermediate

    @property
    def parameters(self) -> int:
        """Embeddings and layers; norms are left out (below 0.1 %)."""
        return self.matrix * (1 if self.tied else 2) + self.layers * self.layer

    def adapters(self, rank: int) -> int:
        """Numbers of LoRA adapters of a rank on every linear layer but the output layer (peft's ``all-linear``)."""
        wide, query, key, inner = self.hidden, self.query, self.key, self.intermediate
        return self.layers * rank * (2 * (wide + query) + 2 * (wide + key) + 3 * (wide + inner))


_QWEN, _LLAMA = 151_936, 128_256
KNOWN = {
    "Qwen3-0.6B": ModelShape(1024, 28, 2048, 1024, 3072, _QWEN, True, 40_960),
    "Qwen3-1.7B": ModelShape(2048, 28, 2048, 1024, 6144, _QWEN, True, 40_960),
    "Qwen3-4B": ModelShape(2560, 36, 4096, 1024, 9728, _QWEN, True, 40_960),
    "Qwen3-8B": ModelShape(4096, 36, 4096, 1024, 12_288, _QWEN, False, 40_960),
    "Qwen3-14B": ModelShape(5120, 40, 5120, 1024, 17_408, _QWEN, False, 40_960),
    "Qwen2.5-Math-1.5B": ModelShape(1536, 28, 1536, 256, 8960, _QWEN, True, 4096),
    "Qwen2.5-Math-7B": ModelShape(3584, 28, 3584, 512, 18_944, 152_064, False, 4096),
    "DeepSeek-R1-Distill-Qwen-1.5B": ModelShape(1536, 28, 1536, 256, 8960, _QWEN, False, 131_072),
    "Llama-3.1-8B": ModelShape(4096, 32, 4096, 1024, 14_336, _LLAMA, False, 131_072),
    "Llama-3.1-70B": ModelShape(8192, 80, 8192, 1024, 28_672, _LLAMA, False, 131_072),
    "SmolLM2-135M": ModelShape(576, 30, 576, 192, 1536, 49_152, True, 8192),
}
"""From the ``config.json`` of each model's own repository."""

QWEN3_BASE_POSITIONS = 32_768


def known_shape(name: str) -> ModelShape | None:
    """The shape of a hub id of a known family, whatever its owner and variant."""
    last = name.rsplit("/", 1)[-1]
    shape = KNOWN.get(_VARIANT.sub("", last))
    is_base = last.startswith("Qwen3-") and last.endswith("-Base")
    return replace(shape, positions=QWEN3_BASE_POSITIONS) if shape and is_base else shape
