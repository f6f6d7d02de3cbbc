"""Pre-trained toy models: those that come with the package, and a cache of all others.

Each is known by a hash of everything that determines its weights. ``weights/`` has the default sizes for seed 0 as
float16, made by ``scripts/toy_models.py``; ``weights/models.json`` says how, their SHA-256 and what they can do.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock

from s2l_ext import __version__
from s2l_ext.errors import DataError
from s2l_ext.toy import tasks
from s2l_ext.toy.models import get_size
from s2l_ext.toy.pretrain import DEFAULTS, PretrainConfig, pretrain
from s2l_ext.toy.tokenizer import CHAT_TEMPLATE, VOCABULARY, build_tokenizer
from s2l_ext.utils.digests import digest_of, sha256_file
from s2l_ext.utils.files import cache_root, staged, writable

CODE_VERSION = 1
"""Raise it when code that determines the weights changes without any of the hashed values changing."""
MANIFEST, WEIGHTS = "s2l_toy.json", "model.safetensors"
SHIPPED = Path(__file__).with_name("weights")
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
    """Folder of the pre-trained model and its tokenizer; trains it when neither the package nor the cache has it.

    Two processes that want the same model wait for each other; one trains. An interrupted build leaves nothing that a
    later call could take for a model.
    """
    get_size(size)
    config = config or DEFAULTS[size]
    key = content_key(size, config, seed)
    if (read_manifest(SHIPPED / size) or {}).get("key") == key:
        require_whole(SHIPPED / size, "Install s2l-ext again: pip install --force-reinstall --no-deps s2l-ext.")
        return SHIPPED / size
    folder = cache_root() / "toy" / f"{size}-{key}"
    if not folder.is_dir():
        _build_once(folder, size, config, seed, progress)
    require_whole(folder, "Remove the folder; it is made again.")
    return folder


def _build_once(folder: Path, size: str, config: PretrainConfig, seed: int, progress: bool) -> None:
    with writable(folder.parent, "Set S2L_CACHE_DIR to a folder you can write."), FileLock(folder.with_suffix(".lock")):
        if not folder.is_dir():
            for leftover in folder.parent.glob(f".{folder.name}-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            build(folder, size, config, seed, progress)


def build(
    folder: Path, size: str, config: PretrainConfig, seed: int, progress: bool = True, half: bool = False
) -> None:
    """Pre-train into ``folder``: model, tokenizer and manifest. ``half`` stores the weights as float16; ``config.json``
    still says float32, in which the model computes.
    """
    result = pretrain(size, config, seed, progress)
    with staged(folder) as stage:
        result.model.save_pretrained(stage)
        build_tokenizer().save_pretrained(stage)
        if half:
            _halve(stage / WEIGHTS)
        (stage / WEIGHTS).chmod(0o644)  # safetensors' own is 600
        manifest: dict[str, Any] = {
            "key": content_key(size, config, seed),
            "size": size,
            "seed": seed,
            "parameters": result.model.num_parameters(),
            "skill_steps": result.skill_steps,
            "skill_loss": result.skill_loss,
            "mode_loss": result.mode_loss,
            "config": asdict(config),
            "sha256": {file.name: sha256_file(file) for file in sorted(stage.iterdir())},
        }
        (stage / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        (stage / "README.md").write_text(CARD.format(size=size, version=__version__))


def _halve(file: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_file({name: weight.half() for name, weight in load_file(file).items()}, file, metadata={"format": "pt"})


def require_whole(folder: Path, fix: str) -> None:
    """Compare a model's files with the SHA-256 in its manifest (caches of earlier versions have none); DataError for a
    missing, damaged or other file.
    """
    for name, expected in (read_manifest(folder) or {}).get("sha256", {}).items():
        path = folder / name
        found = sha256_file(path) if path.is_file() else None
        if found != expected:
            why = "it is missing" if found is None else f"its SHA-256 is {found[:16]}…, not {expected[:16]}…"
            raise DataError(f"{path}: damaged, or not the toy model that {MANIFEST} describes ({why}). {fix}")


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """What ``build`` wrote beside the weights, or None where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return dict(json.loads(path.read_bytes()))
    except (TypeError, ValueError) as error:
        raise DataError(f"{path}: damaged ({error}). Remove {folder}; it is made again.") from error
