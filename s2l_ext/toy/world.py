"""Put the toy world into a folder: models with their tokenizer, and data files in verl's layout."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from s2l_ext.errors import DataError
from s2l_ext.toy.cache import pretrained_folder, read_manifest, require_whole
from s2l_ext.toy.models import get_size
from s2l_ext.toy.pretrain import config_of
from s2l_ext.toy.tasks import SPLITS, TIERS, sample, to_row
from s2l_ext.utils.files import replacing, staged, writable

ROWS = {"train": 2048, "val": 256, "test": 512}


@dataclass(frozen=True)
class ToyWorld:
    """Folders of model and tokenizer by size, and parquet files by name: ``train``, ``val``, ``test`` (tier 0) and
    ``<split>_tier<K>``.
    """

    root: Path
    models: dict[str, Path]
    files: dict[str, Path]


def prepare(
    out_dir: str | Path,
    sizes: Sequence[str] = ("small", "medium"),
    seed: int = 0,
    progress: bool = True,
    family: str = "made",
) -> ToyWorld:
    """Write models (small, medium, large) to ``out_dir/models/<size>`` and data to ``out_dir/<name>.parquet``.

    Pre-trains what neither the package nor the cache has; a second call copies nothing and returns at once. ``seed`` is
    that of the data and of pre-training; none can make splits overlap. In the family "made" every size has its own
    examples; in "natural" all are pre-trained alike, and are ``natural_<size>``.
    """
    root = Path(out_dir)
    if isinstance(sizes, str):
        raise DataError(f"sizes={sizes!r}: give a list of sizes, such as [{sizes!r}].")
    for size in sizes:
        get_size(size)
        config_of(size, family)
    with writable(root, "Choose another output folder."):
        files = write_files(root, seed)
        (root / "models").mkdir(exist_ok=True)
    cached = {
        size if family == "made" else f"{family}_{size}": pretrained_folder(
            size, seed, config_of(size, family), progress=progress
        )
        for size in sizes
    }
    with writable(root, "Choose another output folder."), FileLock(root / "models" / ".install.lock"):
        models = {size: _install(folder, root / "models" / size) for size, folder in cached.items()}
    return ToyWorld(root, models, files)


def write_files(root: Path, seed: int, rows: dict[str, int] | None = None) -> dict[str, Path]:
    """One parquet file per tier and split, each put in place in one step. ``rows`` is split -> number of rows."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    files = {}
    for tier in TIERS:
        for split in SPLITS:
            name = split if tier == 0 else f"{split}_tier{tier}"
            problems = sample(tier, split, (rows or ROWS)[split], seed)
            files[name] = root / f"{name}.parquet"
            with replacing(files[name]) as partial:
                pq.write_table(pa.Table.from_pylist([to_row(problem, tier, split) for problem in problems]), partial)
    return files


def _install(source: Path, target: Path) -> Path:
    """Copy a cached model, unless it is there already. Only what an earlier call installed is replaced."""
    if target.exists():
        present = read_manifest(target) if target.is_dir() else None
        if present is None:
            raise DataError(f"{target}: exists and is no toy world. Move it away or choose another output folder.")
        if present == read_manifest(source):
            require_whole(target, "Remove the folder; the same command puts it back.")
            return target
        shutil.rmtree(target)
    with staged(target) as stage:
        shutil.copytree(source, stage, dirs_exist_ok=True)
    return target
