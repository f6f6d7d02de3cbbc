"""What can be told about a model from its path and the metadata beside its weights; no weights are read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from s2l_ext.errors import ConfigError
from s2l_ext.utils import json_text

LONGEST_HEADER = 100 << 20
"""Safetensors' own limit."""

_SIZE_IN_NAME = re.compile(r"(?<![\d._])(\d+(?:[._]\d+)?)([BM])(?![A-Za-z0-9])", re.IGNORECASE)
_UNIT = {"B": 1e9, "M": 1e6}


def is_local(path: str) -> bool:
    """Whether ``path`` means a folder here rather than a hub id (``owner/name``) or a remote URL."""
    if "://" in path:
        return False
    folder = Path(path).expanduser()
    is_beside_others = folder.parent != Path(".") and folder.parent.is_dir()
    return path.startswith(("/", ".", "~")) or folder.is_dir() or path.count("/") > 1 or is_beside_others


def parameter_count(path: str) -> int | None:
    """Parameters of a model, or None when nothing tells.

    A local folder: exact from the safetensors headers, else estimated from ``config.json`` (dense decoders).
    A hub id: read from its name (``Qwen3-1.7B``, ``internlm2_5-1_8b``), which is rounded.

    Raises:
        ConfigError: a file of the folder is damaged.
    """
    if not is_local(path):
        return _count_from_name(path)
    folder = Path(path).expanduser()
    files = sorted(folder.glob("*.safetensors"))
    if files:
        return sum(_count_in_header(file) for file in files)
    config = folder / "config.json"
    return _estimate(_mapping(config, config.read_bytes())) if config.is_file() else None


def needs_own_code(folder: Path) -> bool:
    """Whether a local model folder names Python classes of its own, for a kind that transformers does not know."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = folder / "config.json"
    config = _mapping(path, path.read_bytes())
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING_NAMES


def _count_from_name(name: str) -> int | None:
    match = _SIZE_IN_NAME.search(name.rsplit("/", 1)[-1])
    return int(float(match[1].replace("_", ".")) * _UNIT[match[2].upper()]) if match else None


def _count_in_header(file: Path) -> int:
    with open(file, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = _mapping(file, stream.read(min(length, LONGEST_HEADER)))
    try:
        return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
    except (KeyError, TypeError) as error:
        raise _unreadable(file, error) from error


def _mapping(file: Path, content: bytes) -> dict[str, Any]:
    try:
        return dict(json_text.loads(content))
    except (TypeError, ValueError) as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ConfigError:
    return ConfigError(f"{file}: no part of a Hugging Face model ({error}). Restore the folder from a copy.")


def _estimate(config: dict[str, Any]) -> int | None:
    """Embeddings, attention with grouped keys and a gated MLP; norms are left out (below 0.1 %)."""
    try:
        hidden, layers, heads = config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"]
        embeddings = config["vocab_size"] * hidden * (1 if config.get("tie_word_embeddings") else 2)
        head_dim = config.get("head_dim") or hidden // heads
        attention = hidden * head_dim * 2 * (heads + config.get("num_key_value_heads", heads))
        return int(embeddings + layers * (attention + 3 * hidden * config["intermediate_size"]))
    except (KeyError, TypeError, ZeroDivisionError):
        return None
