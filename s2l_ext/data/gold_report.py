"""What the mathematical reward reads of a data set's answers, counted and with examples, before anything is trained."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext.data.reading import open_parquet
from s2l_ext.data.values import shown
from s2l_ext.rewards.gold_reading import KINDS, UNSAFE, read_gold

MOST = 500
"""Different golds that are read at most, plain numbers apart: math-verify parses each one."""
PLAIN = re.compile(r"-?\d+(?:\.\d+)?")
EXAMPLES = 5
WORDS = {kind: kind for kind in KINDS} | {"several": "several answers", "in_part": "read in part", "unread": "not read"}


@dataclass(frozen=True)
class Example:
    """A gold that is not read whole: ``where`` is its file and row, ``read`` what is compared."""

    where: str
    gold: str
    kind: str
    read: str

    def __str__(self) -> str:
        read = f", read as {shown(self.read)}" if self.read and self.read != self.gold else ""
        return f"  {WORDS[self.kind]}: {self.where}: {shown(self.gold)}{read}"


@dataclass(frozen=True)
class GoldReport:
    """Golds by kind (a repeated gold counts each time), and the first that are read in part or not at all. The files
    hold ``distinct`` different golds, of which ``looked_at`` were read.
    """

    counts: dict[str, int]
    examples: tuple[Example, ...]
    distinct: int
    looked_at: int

    @property
    def unsafe(self) -> int:
        return sum(self.counts[kind] for kind in UNSAFE)

    def as_lines(self) -> list[str]:
        """As a person reads it: one line of counts, one for each example."""
        found = ", ".join(f"{number} {WORDS[kind]}" for kind, number in self.counts.items() if number)
        sample = "" if self.looked_at == self.distinct else f" ({self.looked_at} of {self.distinct} different ones)"
        return [f"golds as the reward reads them{sample}: {found or 'none'}", *map(str, self.examples)]

    def warning(self) -> str | None:
        """One sentence or two on golds that are not read whole; None without any."""
        if not self.unsafe:
            return None
        first = self.examples[0]
        return (
            f"{self.unsafe} of {sum(self.counts.values())} golds are read in part or not at all, so that only the same "
            f"text is right (first: {first.where}: {shown(first.gold)}). Rewrite these answers or remove their rows."
        )


def report(files: Sequence[Path], most: int = MOST) -> GoldReport:
    """Read the ground truths of verl parquet as the mathematical reward does: all that are plain numbers, and at
    most ``most`` different others, evenly spaced in the order of their rows."""
    times: Counter[str] = Counter()
    first: dict[str, tuple[str, Any]] = {}
    for where, gold in _read_golds(files):
        times[repr(gold)] += 1
        first.setdefault(repr(gold), (where, gold))
    plain = {key for key, (_, gold) in first.items() if PLAIN.fullmatch(str(gold))}
    others = [key for key in first if key not in plain]
    chosen = plain | set(others[:: max(-(-len(others) // most), 1)])
    counts, examples = dict.fromkeys(KINDS, 0), list[Example]()
    for key in filter(chosen.__contains__, first):
        where, gold = first[key]
        reading = read_gold(gold)
        counts[reading.kind] += times[key]
        if reading.kind in UNSAFE and len(examples) < EXAMPLES:
            examples.append(Example(where, reading.gold, reading.kind, reading.read))
    return GoldReport(counts, tuple(examples), len(first), len(chosen))


def _read_golds(files: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    for path in files:
        with open_parquet(path) as file:
            batches = file.iter_batches(columns=["reward_model.ground_truth"])
            models = (model for batch in batches for model in batch.column("reward_model").to_pylist())
            for number, model in enumerate(models):
                yield f"{path}: row {number}", None if model is None else model["ground_truth"]
