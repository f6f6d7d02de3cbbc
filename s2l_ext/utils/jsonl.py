"""Lines appended as responses are graded, so that a kill loses none: behind ``s2l explore`` and ``s2l eval``."""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from s2l_ext.errors import DataError
from s2l_ext.utils.run_lock import NO_LOCKS_HERE


class Journal:
    """A file of lines. One process at a time; :func:`whole_lines` leaves out a last line that a kill cut short.
    ``busy``: what to say of another process that has the file, such as "another evaluation writes this file". Raises
    DataError: another process has the file, or it cannot be written."""

    def __init__(self, path: Path, busy: str) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except OSError as error:
            raise cannot_write(path, error) from error
        try:
            _lock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = os.path.samestat(os.fstat(self._file), path.stat())
        except OSError:
            free = False
        if not free:
            os.close(self._file)
            raise DataError(f"{path}: {busy}. Wait for it, or choose another --out.")

    def add(self, line: bytes) -> None:
        """Append a line; after this returns, a kill loses nothing of it."""
        try:
            _write(self._file, line)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def cut(self) -> None:
        """Drop a last line that is not whole."""
        if os.fstat(self._file).st_size:
            with mmap.mmap(self._file, 0, access=mmap.ACCESS_READ) as content:
                end = content.rfind(b"\n") + 1
            os.ftruncate(self._file, end)

    def replace(self, lines: Iterable[bytes]) -> None:
        """These lines only. A kill leaves the old ones or the new; the file stays this process's own."""
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            file = os.open(partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o644)
            try:
                _lock(file, fcntl.LOCK_EX)  # before it has its name, so that nobody comes in between
                _write(file, b"".join(lines))
                os.fsync(file)
                os.replace(partial, self.path)
            except BaseException:
                os.close(file)
                raise
        except OSError as error:
            raise cannot_write(self.path, error) from error
        os.close(self._file)
        self._file = file

    def close(self) -> None:
        os.close(self._file)


def whole_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Lines with their numbers from 1; a last one without its end is left out."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield number, line


def cannot_write(path: Path, error: OSError) -> DataError:
    """What to say when the disk is full or the folder is read-only."""
    return DataError(
        f"{path}: cannot be written ({error.strerror or error}). Responses already there are kept. Free disk "
        "space or correct the folder, then run the same command again."
    )


def _lock(file: int, how: int) -> None:
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in NO_LOCKS_HERE:
            raise


def _write(file: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(file, rest) :]
