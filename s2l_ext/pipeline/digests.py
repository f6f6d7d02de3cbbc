"""SHA-256 of files and folders. A file's digest is kept until its size, times or inode change: weights are large."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from s2l_ext.data.prompts import sha256_file
from s2l_ext.utils import json_text
from s2l_ext.utils.files import write_atomically

FILE_NAME = ".digests.json"


def sha256_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of(value: object) -> str:
    """Digest of plain values, independent of the order of keys."""
    return sha256_text(json.dumps(value, sort_keys=True, default=str))


class Digests:
    """Digests of files, kept in ``<folder>/.digests.json``; a lost or damaged cache only costs time."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        try:
            loaded = json_text.loads(self.path.read_text())
        except (OSError, ValueError):
            loaded = {}
        self._known: dict[str, list[object]] = loaded if isinstance(loaded, dict) else {}
        self._changed = False

    def file(self, path: Path) -> str:
        """Digest of a file's content."""
        stat = path.stat()
        mark = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
        known = self._known.get(str(path))
        if known is None or known[:-1] != mark:
            known = [*mark, sha256_file(path)]
            self._known[str(path)] = known
            self._changed = True
        return str(known[-1])

    def folder(self, path: Path) -> dict[str, str]:
        """Digest of every file below a folder, by relative name; hidden files and folders are left out."""
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
        return {file.relative_to(path).as_posix(): self.file(file) for file in files}

    def path_digest(self, path: str) -> str:
        """One digest of a file or a folder; what is not here (a hub id) is known by its name alone."""
        local = Path(path).expanduser()
        if local.is_dir():
            return digest_of(self.folder(local))
        return self.file(local) if local.is_file() else f"name:{path}"

    def save(self) -> None:
        """Write the cache, if anything is new and the folder is there."""
        if self._changed and self.path.parent.is_dir():
            write_atomically(self.path, json.dumps(self._known))
            self._changed = False


def _hidden(relative: Path) -> bool:
    return any(part.startswith(".") for part in relative.parts)


def damage(digests: Digests, folder: Path, expected: Mapping[str, str]) -> str | None:
    """The first file that is missing or differs: file, expected and found digest; None when all are as they were."""
    for name, wanted in expected.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing (expected sha256 {wanted[:16]})"
        if (found := digests.file(path)) != wanted:
            return f"{path} is damaged: expected sha256 {wanted[:16]}, found {found[:16]}"
    return None
