"""What a check says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was found, and what to do if it is not ``ok``.

    Attributes:
        status: ``fail`` when runs will not work or are not safe, ``warn`` when some may not.
    """

    name: str
    status: Status
    value: str
    mend: str = ""

    def as_json(self) -> dict[str, Any]:
        """``found``, ``ok`` and ``fix`` are what version 0.1.0 called value, no failure, and mend."""
        own = {"name": self.name, "status": self.status, "value": self.value, "mend": self.mend}
        return own | {"found": self.value, "ok": self.status != "fail", "fix": self.mend}

    def as_line(self) -> str:
        line = f"{MARKS[self.status]} {self.name:<18} {self.value}"
        return line if self.status == "ok" else f"{line}\n     -> {self.mend}"


def judged(name: str, value: str, good: bool, mend: str, otherwise: Status = "fail") -> Finding:
    """``ok`` without a mend, else ``otherwise`` with it."""
    return Finding(name, "ok", value) if good else Finding(name, otherwise, value, mend)
