"""DAPO-Math-17k (and its AIME 2024) to verl parquet: one row a problem, with a prompt that asks for what is judged.

The published files repeat their problems; each prompt is DAPO's instruction around the problem.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from s2l_ext.data import converting, values
from s2l_ext.data.command import command_of
from s2l_ext.data.converting import Converter, Output, Records, Row, option
from s2l_ext.errors import DataError

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""That of the mathematical benchmarks of ``s2l eval``."""
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem."
)
AFTER = 'Remember to put your answer on its own line after "Answer:".'
FORM = re.compile(rf"\s*{re.escape(BEFORE)}\s*\n(.*)\n\s*{re.escape(AFTER)}\s*", re.DOTALL)
PROMPTS = ("boxed", "answer-line")


@dataclass(frozen=True)
class Dapo(Converter):
    """The first row of every problem."""

    command = "dapo"
    columns = ("prompt", "reward_model")
    data_source: str = option("math_dapo", "verl's data_source")
    prompt: str = option("boxed", "boxed: ask for \\boxed{}; answer-line: DAPO's 'Answer: $Answer'", choices=PROMPTS)
    instruction: str = option(INSTRUCTION, "sentence appended to every problem, for boxed")

    def rows(self, records: Records, out: Output) -> Iterator[Row]:
        split = str(self.name)
        for _, where, record in records:
            problem, answer = _read_problem(record, where), _read_answer(record, where)
            index = converting.index_of(problem)
            if out.drops_repeat(split, index, where, answer):
                continue
            if self.prompt == "boxed":
                prompt = converting.user_prompt(problem, self.instruction)
            else:
                prompt = converting.user_prompt(f"{BEFORE}\n\n{problem}\n\n{AFTER}", "")
            yield Row(split, f"dapo-{converting.digest(problem)[:16]}", index, prompt, answer)


def _read_problem(record: dict[str, Any], where: str) -> str:
    messages = record.get("prompt")
    one = isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
    content = messages[0].get("content") if one and messages else None
    found = FORM.fullmatch(content) if isinstance(content, str) else None
    if found is None or not found[1].strip():
        raise DataError(
            f"{where}: column 'prompt' is {values.shown(messages)}, not one message with DAPO's instruction around a "
            "problem. Files of another form are read by `s2l data jsonl`, or are verl parquet already."
        )
    return values.clean_text(found[1], where, "column 'prompt'")


def _read_answer(record: dict[str, Any], where: str) -> str:
    model = record.get("reward_model")
    if not isinstance(model, dict) or "ground_truth" not in model:
        raise DataError(f"{where}: column 'reward_model' is {values.shown(model)}, with no 'ground_truth'.")
    truth = values.answer_text(model["ground_truth"], where, "column 'reward_model.ground_truth'")
    return values.without_exponent(truth)


add_arguments, main = command_of(Dapo)
