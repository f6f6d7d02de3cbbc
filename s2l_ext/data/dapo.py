"""DAPO-Math-17k (and its AIME 2024) to verl parquet: one row a problem, with a prompt that asks for what is judged.

The published files repeat their problems; each prompt is DAPO's instruction around the problem.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from s2l_ext.data import arguments, converting, reading, values
from s2l_ext.data.converting import Output, Row, Source, Written
from s2l_ext.errors import DataError

INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
"""That of the mathematical benchmarks of ``s2l eval``."""
BEFORE = (
    "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
    "$Answer (without quotes) where $Answer is the answer to the problem."
)
AFTER = 'Remember to put your answer on its own line after "Answer:".'
FORM = re.compile(rf"\s*{re.escape(BEFORE)}\s*\n(.*)\n\s*{re.escape(AFTER)}\s*", re.DOTALL)
COLUMNS = ("prompt", "reward_model")
PROMPTS = ("boxed", "answer-line")


def convert(
    input: str | Path | Sequence[str | Path],
    output: str | Path,
    prompt: str = "boxed",
    limit: int | None = None,
    instruction: str = INSTRUCTION,
    name: str = "train",
    data_source: str = "math_dapo",
    overwrite: bool = False,
    progress: bool = False,
) -> list[Written]:
    """Write ``<output>/<name>.parquet``: the first row of every problem.

    Args:
        prompt: ``boxed`` puts ``instruction`` in place of DAPO's; ``answer-line`` keeps DAPO's ``Answer: $Answer``.
        limit: first rows of every input file only.
        instruction: sentence appended to every problem, for ``boxed``.

    Raises:
        DataError: file, row and reason of the first row of another form, or an existing file that holds other data.
    """
    if prompt not in PROMPTS:
        raise DataError(f"prompt={prompt!r}: choose one of {', '.join(PROMPTS)}.")
    files = converting.paths_of(input)
    repeats = converting.Repeats(drop=True)
    with Output(output, Source("dapo", data_source, files), overwrite) as out:
        out.expect(name)
        for path in files:
            for where, record in reading.read_rows(path, COLUMNS, limit, progress):
                problem, answer = _problem(record, where), _answer(record, where)
                repeated = repeats.reason(converting.index_of(problem), where, answer, "")
                if repeated:
                    out.drop_row(name, repeated)
                else:
                    out.add(_row(problem, answer, name, prompt, instruction))
    return out.files


def _problem(record: dict[str, Any], where: str) -> str:
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


def _answer(record: dict[str, Any], where: str) -> str:
    model = record.get("reward_model")
    if not isinstance(model, dict) or "ground_truth" not in model:
        raise DataError(f"{where}: column 'reward_model' is {values.shown(model)}, with no 'ground_truth'.")
    truth = values.answer_text(model["ground_truth"], where, "column 'reward_model.ground_truth'")
    return values.without_exponent(truth)


def _row(problem: str, answer: str, name: str, prompt: str, instruction: str) -> Row:
    asked = f"{problem}\n{instruction}" if prompt == "boxed" else f"{BEFORE}\n\n{problem}\n\n{AFTER}"
    identity = f"dapo-{converting.digest(problem)[:16]}"
    index = converting.index_of(problem)
    return Row(name, identity, index, [{"role": "user", "content": asked}], answer)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of ``s2l data dapo``."""
    arguments.add_common_arguments(parser, arguments.KINDS)
    parser.add_argument(
        "--prompt",
        choices=PROMPTS,
        default="boxed",
        help="boxed: ask for \\boxed{}; answer-line: keep DAPO's 'Answer: $Answer' (default: %(default)s)",
    )
    parser.add_argument("--instruction", default=INSTRUCTION, help="sentence appended to every problem, for boxed")
    parser.add_argument("--name", default="train", help="split and file name (default: %(default)s)")
    parser.add_argument("--data-source", default="math_dapo", help="verl's data_source (default: %(default)s)")


def main(args: argparse.Namespace) -> int:
    """``s2l data dapo``. Returns the exit status; unusable input raises DataError."""
    return arguments.run(args, convert, prompt=args.prompt, instruction=args.instruction, name=args.name)
