"""HumanEval rows: the tests become the ground truth, the gold program a trace only when asked for."""

from __future__ import annotations

import argparse
import ast
import json
import random
from typing import Any

import pytest

from s2l_ext.data import humaneval
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.traces import answer_start
from s2l_ext.errors import DataError

PROMPT = (
    'from typing import List\n\n\ndef add(a: int, b: int) -> int:\n    """ Sum.\n    >>> add(1, 2)\n    3\n    """\n'
)
TEST = "\n\ndef check(candidate):\n    assert candidate(1, 2) == 3\n"
TASK = {
    "task_id": "HumanEval/0",
    "prompt": PROMPT,
    "canonical_solution": "    return a + b\n",
    "test": TEST,
    "entry_point": "add",
}


def test_every_field_of_a_row(tmp_path, jsonl, rows_of):
    (written,) = humaneval.HumanEval().convert(jsonl(tmp_path / "a.jsonl", [TASK]), tmp_path)
    assert (written.split, written.rows, written.with_trace) == ("test", 1, 0)
    assert check_parquet(tmp_path / "test.parquet") == 1
    (row,) = rows_of(tmp_path / "test.parquet")
    extra = row["extra_info"]
    assert (extra["id"], extra["split"], extra["trace"]) == ("HumanEval/0", "test", "")
    assert row["data_source"] == "humaneval" and row["ability"] == "code"
    (message,) = row["prompt"]
    assert message["role"] == "user" and "```python ... ```" in message["content"]
    assert message["content"].endswith(f"```python\n{PROMPT.rstrip()}\n```")
    assert json.loads(row["reward_model"]["ground_truth"]) == {
        "style": "humaneval",
        "prompt": PROMPT,
        "test": TEST,
        "entry_point": "add",
    }


def test_canonical_trace_ends_in_the_program(tmp_path, jsonl, rows_of):
    humaneval.HumanEval(trace="canonical").convert(jsonl(tmp_path / "a.jsonl", [TASK]), tmp_path)
    trace = rows_of(tmp_path / "test.parquet")[0]["extra_info"]["trace"]
    start = answer_start(trace)
    assert trace[:start].startswith("<think>") and trace[:start].endswith("</think>")
    program = trace[start:].strip().removeprefix("```python\n").removesuffix("\n```")
    space: dict[str, Any] = {}
    exec(program, space)
    assert space["add"](1, 2) == 3 and ast.parse(program)


def test_both_forms_are_the_same_and_order_changes_no_id(tmp_path, jsonl, rows_of):
    tasks = [{**TASK, "task_id": f"HumanEval/{n}", "prompt": PROMPT.replace("Sum", f"Sum {n}")} for n in range(8)]
    other = [
        {
            "id": task["task_id"],
            "problem": task["prompt"],
            "solution": task["canonical_solution"],
            **{key: task[key] for key in ("test", "entry_point")},
            "answer": "",
        }
        for task in random.Random(0).sample(tasks, 8)
    ]
    kept = []
    for name, rows in (("a", tasks), ("b", other)):
        humaneval.HumanEval(trace="canonical").convert(jsonl(tmp_path / f"{name}.jsonl", rows), tmp_path / name)
        kept.append({row["extra_info"]["id"]: row for row in rows_of(tmp_path / name / "test.parquet")})
    assert kept[0] == kept[1] and len(kept[0]) == 8


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": None}, "a.jsonl:2: column 'prompt' is None, not text"),
        ({"test": " "}, "a.jsonl:2: column 'test' is ' ', not text"),
        ({"prompt": 3}, "a.jsonl:2: column 'prompt' is 3, not Python"),
        ({"task_id": ""}, "a.jsonl:2: column 'task_id' is ''"),
        ({"canonical_solution": ""}, "a.jsonl:2: column 'canonical_solution' is ''"),
        ({"canonical_solution": "    return (\n"}, "a.jsonl:2: column 'canonical_solution' is not Python"),
        ({"test": "def check(:"}, "a.jsonl:2: column 'test' is not Python"),
        ({"test": "assert add(1, 2) == 3"}, "a.jsonl:2: column 'test' does not define check(candidate)"),
        ({"entry_point": "sub"}, "a.jsonl:2: column 'entry_point' is 'sub', which column 'prompt' does not define"),
        ({"task_id": "HumanEval/0"}, "a.jsonl:2: task 'HumanEval/0' is also at"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, changes, message, jsonl):
    path = jsonl(tmp_path / "a.jsonl", [TASK, {**TASK, "task_id": "HumanEval/1", **changes}])
    with pytest.raises(DataError) as error:
        humaneval.HumanEval(trace="canonical").convert(path, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_prompt_that_is_no_python_is_named_without_a_solution_too(tmp_path, jsonl):
    path = jsonl(tmp_path / "a.jsonl", [{**TASK, "prompt": "def add(:\n"}])
    with pytest.raises(DataError, match=r"a\.jsonl:1: column 'prompt' is not Python"):
        humaneval.HumanEval().convert(path, tmp_path / "out")


def test_empty_file_and_unknown_trace(tmp_path, jsonl):
    with pytest.raises(DataError, match=r"a\.jsonl: the file has no rows"):
        humaneval.HumanEval().convert(jsonl(tmp_path / "a.jsonl", []), tmp_path)
    with pytest.raises(DataError, match="choose one of none, canonical"):
        humaneval.HumanEval(trace="gold").convert(tmp_path / "a.jsonl", tmp_path)


def test_command_line(tmp_path, capsys, jsonl):
    parser = argparse.ArgumentParser()
    humaneval.add_arguments(parser)
    words = ["--input", str(jsonl(tmp_path / "a.jsonl", [TASK])), "--out", str(tmp_path), "--trace", "canonical"]
    assert humaneval.main(parser.parse_args([*words, "--name", "train", "--json"])) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["split"], file["rows"], file["with_trace"]) == ("train", 1, 1)
