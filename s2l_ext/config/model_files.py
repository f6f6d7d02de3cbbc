"""What can be told about a model from its path and the metadata beside its weights; no weights are read."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from s2l_ext.config.model_shapes import ModelShape, known_shape
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ConfigError
from s2l_ext.utils import json_text

LONGEST_HEADER = 100 << 20
"""Safetensors' own limit."""

ROOM = "Lower one of these, or raise it if the model has the positions."

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
    """Parameters of a model, or None when nothing tells. A local folder: exact from the safetensors headers, else
    estimated from ``config.json`` (dense decoders). A hub id: read from its name (``Qwen3-1.7B``,
    ``internlm2_5-1_8b``), which is rounded. Raises ConfigError: a file of the folder is damaged."""
    if not is_local(path):
        return _count_from_name(path)
    folder = Path(path).expanduser()
    if files := _weight_files(folder):
        return sum(_count_in_header(file) for file in files)
    shape = ModelShape.of(_config(folder))
    return shape.parameters if shape else None


def model_shape(path: str) -> ModelShape | None:
    """Sizes of a model's parts: from a local ``config.json``, for a hub id from its copy in the cache or from a table
    of families. None when neither has them. No hub is asked. Raises ConfigError: a file of the folder is damaged."""
    if is_local(path):
        return ModelShape.of(_config(Path(path).expanduser()))
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(path, "config.json")
    except HFValidationError:  # a remote URL
        cached = None
    return ModelShape.of(_config(Path(cached).parent)) if isinstance(cached, str) else known_shape(path)


def full_rows(cfg: DictConfig) -> str | None:
    """Words for an engine of the learner that cannot hold prompt and response; None where it can, or nothing tells. It
    has ``max_model_len``, where that is null all positions of the model."""
    key, parts = "actor_rollout_ref.rollout.max_model_len", ("data.max_prompt_length", "data.max_response_length")
    model, given = setting(cfg, "actor_rollout_ref.model"), setting(cfg, key)
    shape = None if given else model_shape(model.path)
    told = setting(cfg, "actor_rollout_ref.model.override_config.max_position_embeddings")
    length, needed = given or told or (shape and shape.positions), sum(whole_number(cfg, part) for part in parts)
    if not length or length >= needed:
        return None
    place = f"{key}={given}" if given else f"{key}=null, the {length} positions of {model.path},"
    return f"{place} is below {' + '.join(parts)} = {needed}"


def vocabulary_rows(folder: Path) -> int | None:
    """``vocab_size`` of a local folder's config: rows of its embedding; None where it is not said."""
    config = _config(folder)
    rows = (config.get("text_config") or config).get("vocab_size")
    return rows if isinstance(rows, int) else None


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    return _mapping(path, path.read_bytes()) if path.is_file() else {}


def needs_own_code(folder: Path) -> bool:
    """Whether a local model folder names Python classes of its own, for a kind unknown to transformers."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = folder / "config.json"
    config = _mapping(path, path.read_bytes())
    return "auto_map" in config and config.get("model_type") not in CONFIG_MAPPING_NAMES


def _count_from_name(name: str) -> int | None:
    match = _SIZE_IN_NAME.search(name.rsplit("/", 1)[-1])
    return int(float(match[1].replace("_", ".")) * _UNIT[match[2].upper()]) if match else None


def _weight_files(folder: Path) -> list[Path]:
    """Of one copy of the weights: Mistral's folders have another, ``consolidated.safetensors``."""
    files, index = sorted(folder.glob("*.safetensors")), folder / "model.safetensors.index.json"
    named = _mapping(index, index.read_bytes()).get("weight_map") if index.is_file() else None
    if isinstance(named, dict):
        return [file for file in files if file.name in named.values()]
    return [file for file in files if file.name.startswith("model")] or files


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
