"""SHA-256 of files, folders and plain values: what says that data or weights are the same as before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.json_text import mapping_at

READ_BYTES = 1 << 20


def file_digests(paths: Iterable[str]) -> list[str]:
    """SHA-256 of each file's content, in order; what is no local file is known by its address alone."""
    return [sha256_file(file) if (file := Path(path).expanduser()).is_file() else path for path in paths]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file's content, read in parts."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def digest_of(value: object) -> str:
    """Digest of plain values, independent of the order of keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()


class Digests:
    """Digests of files, kept in the file ``cache`` until a file's size, times or inode change: weights are large. A
    lost or damaged cache only costs time."""

    def __init__(self, cache: Path) -> None:
        self.path = cache
        self._known: dict[str, list[object]] = mapping_at(self.path)
        self._changed = False

    def file(self, path: Path) -> str:
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if not isinstance(known, list) or known[:-1] != mark:
            known = self._known[str(path)] = [*mark, sha256_file(path)]
            self._changed = True
        return str(known[-1])

    def folder(self, path: Path) -> dict[str, str]:
        """Digest of every file below a folder, by relative name; hidden files and folders are left out."""
        files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if file.is_file()}
        shown = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
        return {name.as_posix(): self.file(file) for name, file in shown.items()}

    def of(self, path: str) -> str:
        """One digest of a file or a folder; what is not here (a hub id) is known by its name alone."""
        local = Path(path).expanduser()
        if local.is_dir():
            return digest_of(self.folder(local))
        return self.file(local) if local.is_file() else f"name:{path}"

    def damage(self, folder: Path, expected: Mapping[str, str]) -> str | None:
        """The first file that is missing or differs: file, expected and found digest; None when all are the same."""
        for name, wanted in expected.items():
            path = folder / name
            if not path.is_file():
                return f"{path} is missing (expected sha256 {wanted[:16]})"
            if (found := self.file(path)) != wanted:
                return f"{path} is damaged: expected sha256 {wanted[:16]}, found {found[:16]}"
        return None

    def save(self) -> None:
        """Write the cache, if anything is new and the folder is there."""
        if self._changed and self.path.parent.is_dir():
            write_atomically(self.path, json.dumps(self._known))
            self._changed = False
