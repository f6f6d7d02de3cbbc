"""Pre-trained toy models, kept under a hash of everything that determines their weights."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from s2l_ext.errors import DataError
from s2l_ext.toy import tasks
from s2l_ext.toy.models import get_size, without_shard_bars
from s2l_ext.toy.pretrain import DEFAULTS, PretrainConfig, pretrain
from s2l_ext.toy.tokenizer import CHAT_TEMPLATE, VOCABULARY, build_tokenizer

CODE_VERSION = 1
"""Raise it when code that determines the weights changes without any of the hashed values changing."""
MANIFEST = "s2l_toy.json"


def cache_root() -> Path:
    """``$S2L_CACHE_DIR`` or ``~/.cache/s2l_ext``."""
    return Path(os.environ.get("S2L_CACHE_DIR") or Path.home() / ".cache" / "s2l_ext").expanduser()


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
    return hashlib.sha256(json.dumps(determines, sort_keys=True).encode()).hexdigest()[:16]


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
    with writable(folder.parent, "Set S2L_CACHE_DIR to a folder you can write."), locked(folder):
        if not folder.is_dir():
            _remove_leftovers(folder)
            _build(folder, key, size, config, seed, progress)
    return folder


@contextmanager
def writable(folder: Path, fix: str) -> Iterator[None]:
    """Create the folder; turn a failure to write below it into a DataError that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}). {fix}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Wait until no other process holds the lock file beside ``folder``, then hold it."""
    with open(folder.with_suffix(".lock"), "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _remove_leftovers(folder: Path) -> None:
    for leftover in folder.parent.glob(f".{folder.name}-*"):
        shutil.rmtree(leftover, ignore_errors=True)


def _build(folder: Path, key: str, size: str, config: PretrainConfig, seed: int, progress: bool) -> None:
    result = pretrain(size, config, seed, progress)
    with staged(folder) as stage, without_shard_bars():
        result.model.save_pretrained(stage)
        build_tokenizer().save_pretrained(stage)
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


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside ``folder`` to fill; it takes that name in one step, and only when nothing went wrong."""
    stage = Path(mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    stage.chmod(0o755)
    try:
        yield stage
        os.replace(stage, folder)
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What ``pretrained_folder`` wrote beside the weights, or None where there is none."""
    path = folder / MANIFEST
    manifest: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return manifest
