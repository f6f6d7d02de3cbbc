"""Files that are whole or not there: atomic writes, staged folders, and the cache folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp

from s2l_ext.errors import DataError


def to_disk(path: Path) -> None:
    """Wait until the disk has a file, or a folder's list of names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside ``path`` to write; it takes that name in one step, and only when nothing went wrong."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        to_disk(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write ``content`` so that a reader or a crash sees the old file or the new one, never a part."""
    with replacing(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


def cache_root() -> Path:
    """``$S2L_CACHE_DIR`` or ``~/.cache/s2l_ext``."""
    return Path(os.environ.get("S2L_CACHE_DIR") or Path.home() / ".cache" / "s2l_ext").expanduser()


@contextmanager
def writable(folder: Path, fix: str) -> Iterator[None]:
    """Create the folder; turn a failure to write below it into a DataError that names it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}). {fix}") from error


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
