"""What a check says."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

Status = Literal["ok", "warn", "fail"]
MARKS = {"ok": "ok  ", "warn": "WARN", "fail": "FAIL"}


@dataclass(frozen=True)
class Finding:
    """One line: what was checked, what was found, and the fix if it is not ``ok``. ``status``: ``fail`` when runs will
    not work or are not safe, ``warn`` when some may not."""

    name: str
    status: Status
    value: str
    fix: str = ""

    def as_json(self) -> dict[str, Any]:
        """``found`` and ``ok`` are what version 0.1.0 called value and no failure."""
        return {**asdict(self), "found": self.value, "ok": self.status != "fail"}

    def as_line(self) -> str:
        line = f"{MARKS[self.status]} {self.name:<18} {self.value}"
        return line if self.status == "ok" else f"{line}\n     -> {self.fix}"


def judged(name: str, value: str, good: bool, fix: str, otherwise: Status = "fail") -> Finding:
    """``ok`` without a fix, else ``otherwise`` with it."""
    return Finding(name, "ok", value) if good else Finding(name, otherwise, value, fix)
