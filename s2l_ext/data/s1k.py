"""s1K-1.1 (simplescaling/s1K-1.1) to verl parquet: DeepSeek-R1's thinking and attempt as trace, judged as in Open-R1.

Columns read: ``question``, ``solution``, ``source_type``, ``deepseek_thinking_trajectory``, ``deepseek_attempt``, and
with ``--trust-labels`` ``deepseek_grade``, in which a model said Yes or No.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from s2l_ext.data import traces
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import KEEP_OR_DROP, Output, Records, Row, option
from s2l_ext.data.openr1 import LABELS, OpenR1, require_columns
from s2l_ext.rewards.extraction import marked_answer

THINKING, ATTEMPT, GRADE = "deepseek_thinking_trajectory", "deepseek_attempt", "deepseek_grade"


@dataclass(frozen=True)
class S1K(OpenR1):
    """The answer is the last one that ``solution`` marks, else all of it. A proof is no answer: its row has no right
    trace. The tier is ``source_type``."""

    command = "s1k"
    columns = ("question", "solution", "source_type", THINKING, ATTEMPT, GRADE)
    data_source: str = option("s1k_math", "verl's data_source")
    trust_labels: bool = option(False, f"believe column {GRADE} instead of grading")
    other_sources: str = option("keep", "sources that Open-R1 does not have", choices=KEEP_OR_DROP)

    def check_file(self, path: Path) -> None:
        """Columns are read row by row."""

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        return super().rows(((path, where, _as_open_r1(record, where)) for path, where, record in records), out)


def _as_open_r1(record: dict[str, Any], where: str) -> dict[str, Any]:
    """What is wrong with a text is counted there, not refused."""
    needed = ("question", "solution", THINKING, ATTEMPT)
    require_columns(list(record), where, needed)
    question, solution, thinking, attempt = (str(record[name] or "").strip() for name in needed)
    graded = {LABELS: [str(record[GRADE]).strip().lower() == "yes"]} if GRADE in record else {}
    return {
        "problem": question,
        "answer": marked_answer(solution) or solution,
        "source": record.get("source_type"),
        "generations": [f"{traces.OPEN}\n{thinking}\n{traces.CLOSE}\n\n{attempt}"],
        **graded,
    }


add_arguments, main = command_of(S1K)
