"""A finished stage's model, copied to ``models/NAME`` so that it is there whole or not at all."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from s2l_ext.errors import DataError, ResourceError
from s2l_ext.pipeline.digests import Digests
from s2l_ext.utils import json_text
from s2l_ext.utils.files import to_disk

WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
INDEX = "model.safetensors.index.json"
TOKENIZER = ("tokenizer.json", "tokenizer.model", "vocab.json")


def export(source: Path, target: Path, digests: Digests, stage: str) -> dict[str, str]:
    """Copy a Hugging Face folder: temporary folder, fsync, checksums, rename.

    Returns:
        SHA-256 of every file, by relative name.

    Raises:
        DataError: ``source`` is no complete model, or a copy differs from its original.
        ResourceError: no space, or the folder cannot be written. Nothing half-written is left under ``target``.
    """
    require_model(source, f"stage {stage}")
    wanted = digests.folder(source)
    if target.is_dir() and digests.folder(target) == wanted:
        return wanted  # exported before, by a run that was killed before it could say so
    partial = target.with_name(f"{target.name}.tmp")
    shutil.rmtree(partial, ignore_errors=True)  # of an export that was killed
    try:
        _require_space(source, target)
        _copy(source, partial)
        _compare(digests, partial, wanted)
        set_aside(target)
        os.rename(partial, target)
        to_disk(target.parent)
    except OSError as error:
        raise _no_space(error, target, stage) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return digests.folder(target)


def require_model(folder: Path, what: str) -> None:
    """Raise DataError unless a folder holds configuration, weights (all that an index lists) and a tokenizer."""
    missing = []
    if not (folder / "config.json").is_file():
        missing.append("config.json")
    if not any(next(folder.glob(pattern), None) for pattern in WEIGHTS):
        missing.append("weights (*.safetensors)")
    if not any((folder / name).is_file() for name in TOKENIZER):
        missing.append("a tokenizer (tokenizer.json)")
    missing += [name for name in _indexed(folder) if not (folder / name).is_file()]
    if missing:
        raise DataError(f"{what}: {folder} is no complete Hugging Face model: {', '.join(missing)} missing.")


def _indexed(folder: Path) -> list[str]:
    try:
        return sorted(set(json_text.loads((folder / INDEX).read_text())["weight_map"].values()))
    except FileNotFoundError:
        return []
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{folder / INDEX}: not an index of weights ({error!r}). Restore it from a copy.") from error


def _require_space(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    needed = sum(file.stat().st_size for file in source.rglob("*") if file.is_file())
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OSError(28, f"{needed / 1e9:.2f} GB are needed")


def _copy(source: Path, partial: Path) -> None:
    for file in sorted(path for path in source.rglob("*") if path.is_file()):
        copy = partial / file.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy_file(file, copy)


def copy_file(file: Path, copy: Path) -> None:
    """Copy a file's content and wait until the disk has it."""
    shutil.copyfile(file, copy)
    to_disk(copy)


def _compare(digests: Digests, partial: Path, wanted: dict[str, str]) -> None:
    found = digests.folder(partial)
    for name, expected in wanted.items():
        if found.get(name) != expected:
            raise DataError(
                f"{partial / name}: the copy differs from the original: expected sha256 {expected[:16]}, found "
                f"{str(found.get(name))[:16]}. Check the disk and run the pipeline again."
            )


def _no_space(error: OSError, target: Path, stage: str) -> ResourceError:
    free = shutil.disk_usage(target.parent).free if target.parent.is_dir() else 0
    return ResourceError(
        f"stage {stage}: its model cannot be written to {target}: {error.strerror or error} "
        f"({free / 1e9:.2f} GB free). Training is finished and kept: make space and run the pipeline again, without "
        "--from: it goes on from here."
    )


def set_aside(path: Path) -> Path | None:
    """Rename to ``<name>.stale-N``, the first N that is free; None when there is nothing."""
    if not path.exists():
        return None
    number = 1
    while (kept := path.with_name(f"{path.name}.stale-{number}")).exists():
        number += 1
    path.rename(kept)
    return kept
