"""What a command wrote: new lines of a file that grows, and the end of its log."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from s2l_ext.utils import json_text


@dataclass
class Tail:
    """Complete lines appended to a file that may not exist yet."""

    path: Path
    _offset: int = 0
    _rest: bytes = field(default=b"", repr=False)

    def new_lines(self) -> list[str]:
        try:
            with open(self.path, "rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        self._offset += len(data)
        *lines, self._rest = (self._rest + data).split(b"\n")
        return [line.decode("utf-8", "replace") for line in lines]

    def new_records(self) -> list[dict[str, Any]]:
        """New lines as JSON objects; others are skipped."""
        records = []
        for line in self.new_lines():
            with contextlib.suppress(ValueError):
                record = json_text.loads(line)
                if isinstance(record, dict):
                    records.append(record)
        return records


def last_lines(path: Path, count: int, max_bytes: int = 65536) -> list[str]:
    """Last non-empty lines of a text file; a carriage return (a progress bar) starts a new line."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        file.seek(max(0, path.stat().st_size - max_bytes))
        text = file.read().decode("utf-8", "replace")
    return [line for line in text.replace("\r", "\n").split("\n") if line.strip()][-count:]
