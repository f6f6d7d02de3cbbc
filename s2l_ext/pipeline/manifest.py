"""``manifest.json``: what every stage was made from and gave. Written in one step, after every change."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from s2l_ext.errors import StateMismatch
from s2l_ext.utils import json_text
from s2l_ext.utils.files import write_atomically
from s2l_ext.utils.secrets import masked

SCHEMA_VERSION = 1
FILE_NAME = "manifest.json"

Status = Literal["running", "ran", "failed", "done", "invalid"]
"""``ran``: the command ended well, its output is not exported yet. ``invalid``: done once, to be made again."""


@dataclass
class Entry:
    """One stage.

    Attributes:
        parts: digests of everything that decides the result; ``fingerprint`` is the digest of all.
        result: what hangs on the inputs alone: equal for a pipeline that was interrupted and one that was not.
        cost: seconds, attempts and files that hold seconds, which differ from run to run.
    """

    status: Status
    fingerprint: str
    parts: dict[str, str]
    result: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)


def output_files(entry: Entry) -> dict[str, str]:
    """SHA-256 of the files of a finished stage's output, wherever they are kept."""
    found: dict[str, str] = entry.result["output"].get("files") or entry.cost.get("files", {})
    return found


class Manifest:
    """Entries of the stages by name; every :meth:`put` is on disk when it returns."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / FILE_NAME
        self.name = name
        self.entries = _read(self.path)

    def get(self, stage: str) -> Entry | None:
        return self.entries.get(stage)

    def put(self, stage: str, entry: Entry) -> None:
        self.entries[stage] = entry
        self.write()

    def invalidate(self, stages: list[str]) -> None:
        """Stages that are made again although their fingerprint did not change."""
        for stage in stages:
            if stage in self.entries:
                self.entries[stage].status = "invalid"
        self.write()

    def to_dict(self) -> dict[str, Any]:
        stages = {name: asdict(entry) for name, entry in self.entries.items()}
        return {"schema_version": SCHEMA_VERSION, "pipeline": self.name, "stages": stages}

    def write(self) -> None:
        write_atomically(self.path, json.dumps(masked(self.to_dict()), indent=1) + "\n")


def _read(path: Path) -> dict[str, Entry]:
    if not path.exists():
        return {}
    try:
        document = json_text.loads(path.read_text())
        version = document["schema_version"]
        if version == SCHEMA_VERSION:
            return {name: _entry(name, entry) for name, entry in document["stages"].items()}
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        raise StateMismatch(
            f"{path} cannot be read ({error!r}). Restore it from a copy, or choose another --out to begin anew."
        ) from error
    raise StateMismatch(
        f"{path}: schema_version is {version!r}, this version reads {SCHEMA_VERSION}. Use the version that wrote it, "
        "or choose another --out."
    )


def _entry(name: str, content: dict[str, Any]) -> Entry:
    entry = Entry(**content)
    if not (isinstance(entry.status, str) and isinstance(entry.fingerprint, str)):
        raise TypeError(f"status and fingerprint of {name} must be text")
    if not all(isinstance(part, dict) for part in (entry.parts, entry.result, entry.cost)):
        raise TypeError(f"parts, result and cost of {name} must be mappings")
    return entry
