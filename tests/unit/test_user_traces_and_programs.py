"""Traces and programs that users brought: what guidance keeps back, and which program of a response is judged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from s2l_ext.methods.guidance.client import usable_text
from s2l_ext.rewards.code import compute_score

FIXTURE = Path(__file__).parents[1] / "fixtures" / "user_traces_and_programs.jsonl"
ROWS = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]


def rows(op: str) -> Any:
    chosen = [row for row in ROWS if row["op"] == op]
    return pytest.mark.parametrize("row", chosen, ids=[f"{row['id']}-{row['kind']}" for row in chosen])


@rows("guidance")
def test_guidance_keeps_the_answer_back_and_what_comes_before_it(row: dict[str, Any]) -> None:
    trace, answer = row["input"]["trace"], row["input"]["answer"]
    handed_over = usable_text(trace, stop_before_answer=True, think_is_open=False, answer=answer)
    assert row["expected"]["without"] not in handed_over
    assert handed_over and trace.startswith(handed_over)


@rows("code")
def test_the_program_among_other_blocks_is_judged(row: dict[str, Any]) -> None:
    truth = json.dumps(row["input"]["ground_truth"])
    found = compute_score("humaneval", row["input"]["response"], truth)
    assert found["score"] == row["expected"]
    wrong = row["input"]["response"].replace("n + n", "n + 1")
    assert compute_score("humaneval", wrong, truth)["score"] == 0.0
