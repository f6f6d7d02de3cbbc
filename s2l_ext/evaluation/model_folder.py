"""The model that is evaluated: its folder, tokenizer, stop tokens, lengths, and a fingerprint of its files."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2l_ext.config.model_files import is_local, needs_own_code
from s2l_ext.data.tokenizers import NO_TRUST, Trust, load_tokenizer
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.utils import json_text
from s2l_ext.utils.digests import Digests, file_digests, sha256_file
from s2l_ext.utils.files import cache_root

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

WEIGHTS = ("*.safetensors", "*.bin")
SMALL_FILES = ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "*.jinja", "*.py")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.*", "*.tiktoken", "spiece.model")


@dataclass(frozen=True)
class Model:
    """A model's folder and what sampling needs to know of it. ``max_positions`` is None where the config says none."""

    name: str
    folder: Path
    tokenizer: PreTrainedTokenizerBase
    stop_ids: tuple[int, ...]
    max_positions: int | None
    trust_remote_code: bool = False

    def prompt_ids(self, messages: Sequence[dict[str, str]], options: dict[str, Any]) -> list[int]:
        """Token ids of the chat, up to where the assistant speaks. ``options`` go to the chat template."""
        ids: Any = self.tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False, **options
        )
        return [int(token) for token in ids]

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text as verl hands it to the reward."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))


def open_model(name: str, key: str = "--model", trust: Trust = NO_TRUST) -> Model:
    """Check a model's folder, or fetch the hub's files; ``key`` is where the user wrote the name. Raises ConfigError:
    no such model, a part of it is missing, or it needs code of its own that ``trust`` does not allow."""
    folder = _find_folder(name, key)
    config = _read_json(folder / "config.json", key, name)
    if not _matching(folder, WEIGHTS):
        found = f"no weights (*.safetensors) in the folder. Found: {_list_names(folder)}."
        raise ConfigError(f"{key} {name}: {found}{_merge_hint(folder)}")
    if not trust.code and needs_own_code(folder):
        raise ConfigError(trust.needed(key, name))
    tokenizer = _load_tokenizer(folder, key, name, trust)
    generation = folder / "generation_config.json"
    chosen = _read_json(generation, key, name).get("eos_token_id") if generation.is_file() else None
    stop = [*_list_ids(chosen), *_list_ids(tokenizer.eos_token_id)]
    ids = tuple(dict.fromkeys(stop))
    return Model(name, folder, tokenizer, ids, config.get("max_position_embeddings"), trust.code)


def _find_folder(name: str, key: str) -> Path:
    if is_local(name):
        folder = Path(name).expanduser()
        if not (folder / "config.json").is_file():
            found = f"it holds {_list_names(folder)}, no config.json" if folder.is_dir() else "there is no such folder"
            raise ConfigError(
                f"{key} {name}: {found}. Give a Hugging Face model folder or a hub id (owner/name)."
                f"{_merge_hint(folder)}"
            )
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.jinja", "*.model", "*.txt", "*.py", *WEIGHTS]))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"{key} {name}: no such folder, and the hub gave no files ({reason}).") from error


def _merge_hint(folder: Path) -> str:
    """How to make a model of a checkpoint's shards, where the folder is a part of one."""
    for actor in (folder, folder / "actor", folder.parent):
        if next(actor.glob("model_world_size_*.pt"), None):
            merge = f"python -m verl.model_merger merge --backend fsdp --local_dir {actor} --target_dir DIR"
            return f" {actor} has verl's FSDP shards: `{merge}` makes a model of them, then give DIR."
    return ""


def _load_tokenizer(folder: Path, key: str, name: str, trust: Trust) -> PreTrainedTokenizerBase:
    if not _matching(folder, TOKENIZER_FILES):
        raise ConfigError(
            f"{key} {name}: no tokenizer in the folder (tokenizer.json or tokenizer.model). Found: "
            f"{_list_names(folder)}. Copy the tokenizer files of the model it was trained from."
        )
    tokenizer = load_tokenizer(str(folder), key, trust)
    if tokenizer.chat_template is None:
        raise ConfigError(
            f"{key} {name}: the tokenizer has no chat template, which makes token ids from the messages. Add "
            "chat_template.jinja to the folder, for instance that of the family's instruct model."
        )
    return tokenizer


def _read_json(path: Path, key: str, name: str) -> dict[str, Any]:
    try:
        return dict(json_text.loads(path.read_text(encoding="utf-8")))
    except (OSError, TypeError, ValueError) as error:
        raise ConfigError(f"{key} {name}: {path.name} cannot be read ({error}).") from error


def _matching(folder: Path, patterns: Sequence[str]) -> list[Path]:
    return sorted({path for pattern in patterns for path in folder.glob(pattern)})


def _list_names(folder: Path) -> str:
    return ", ".join(sorted(path.name for path in folder.iterdir())[:12]) or "nothing"


def _list_ids(value: Any) -> list[int]:
    return [] if value is None else [int(item) for item in (value if isinstance(value, list) else [value])]


# ---- fingerprints -------------------------------------------------------------------------------------------------


def model_digest(folder: Path) -> str:
    """SHA-256 over configuration, tokenizer and weights. The weights' digests are remembered: reading 16 GB again
    takes longer than a small evaluation."""
    digests, total = Digests(cache_root() / "digests.json"), hashlib.sha256()
    weights = set(_matching(folder, WEIGHTS))
    for path in _matching(folder, (*SMALL_FILES, *WEIGHTS)):
        digest = digests.file(path.resolve()) if path in weights else sha256_file(path)
        total.update(f"{path.name} {digest}\n".encode())
    with contextlib.suppress(OSError):
        cache_root().mkdir(parents=True, exist_ok=True)
        digests.save()
    return total.hexdigest()


def data_digest(paths: Sequence[Path]) -> str:
    """SHA-256 over the contents of the files, in order."""
    return hashlib.sha256("\n".join(file_digests(map(str, paths))).encode()).hexdigest()


def require_room(model: Model, longest_prompt: int, max_tokens: int) -> int:
    """Positions that prompt and response need. Raises DataError when the model has fewer."""
    needed = longest_prompt + max_tokens
    if model.max_positions is not None and needed > model.max_positions:
        raise DataError(
            f"--max-tokens {max_tokens} after the longest prompt ({longest_prompt} tokens) needs {needed} positions; "
            f"{model.name} has {model.max_positions} (max_position_embeddings). Lower --max-tokens to "
            f"{max(1, model.max_positions - longest_prompt)}."
        )
    return needed
