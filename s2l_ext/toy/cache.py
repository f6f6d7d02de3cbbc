"""Pre-trained toy models, kept under a hash of everything that determines their weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from s2l_ext import __version__
from s2l_ext.toy import tasks
from s2l_ext.toy.models import get_size, without_shard_bars
from s2l_ext.toy.pretrain import DEFAULTS, PretrainConfig, pretrain
from s2l_ext.toy.tokenizer import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from s2l_ext.utils.digests import digest_of
from s2l_ext.utils.files import cache_root, staged, writable

CODE_VERSION = 1
"""Raise it when code that determines the weights changes without any of the hashed values changing."""
MANIFEST = "s2l_toy.json"
CARD = """---
license: apache-2.0
---
Toy model {size} of s2l_ext {version}, trained from scratch on made-up sums (`s2l data toy`): for tests, of no use else.
"""


def content_key(size: str, config: PretrainConfig, seed: int) -> str:
    """16 hex digits that change whenever the weights would."""
    determines = {
        "code": CODE_VERSION,
        "size": asdict(get_size(size)),
        "config": asdict(config),
        "seed": seed,
        "tiers": {number: asdict(tasks.get_tier(number)) for number, _ in config.tier_shares},
        "vocabulary": VOCABULARY,
        "chat_template": CHAT_TEMPLATE,
    }
    return digest_of(determines)[:16]


def pretrained_folder(size: str, seed: int, config: PretrainConfig | None = None, progress: bool = True) -> Path:
    """Folder of the pre-trained model and its tokenizer; trains it when the cache does not have it.

    Two processes that want the same model wait for each other; one trains. An interrupted build leaves nothing that
    a later call could take for a model.

    Raises:
        DataError: the size is unknown or the cache folder cannot be written.
    """
    get_size(size)
    config = config or DEFAULTS[size]
    key = content_key(size, config, seed)
    folder = cache_root() / "toy" / f"{size}-{key}"
    if folder.is_dir():
        return folder
    with writable(folder.parent, "Set S2L_CACHE_DIR to a folder you can write."), FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            _remove_leftovers(folder)
            _build(folder, key, size, config, seed, progress)
    return folder


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _build(folder: Path, key: str, size: str, config: PretrainConfig, seed: int, progress: bool) -> None:
    result = pretrain(size, config, seed, progress)
    with staged(folder) as stage, without_shard_bars():
        result.model.save_pretrained(stage)
        build_tokenizer().save_pretrained(stage)
        (stage / "README.md").write_text(CARD.format(size=size, version=__version__))
        manifest: dict[str, Any] = {
            "key": key,
            "size": size,
            "seed": seed,
            "parameters": result.model.num_parameters(),
            "skill_steps": result.skill_steps,
            "skill_loss": result.skill_loss,
            "mode_loss": result.mode_loss,
            "config": asdict(config),
        }
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What ``pretrained_folder`` wrote beside the weights, or None where there is none."""
    path = folder / MANIFEST
    manifest: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return manifest
