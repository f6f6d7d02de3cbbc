"""Files as users bring them to evaluation and to a run, H074 to H078 of a trial with such files: read or refused."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data.checks import check_parquet
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import load_benchmark
from s2l_ext.evaluation.grading import rewarded
from s2l_ext.evaluation.problems import read_problems


def asked(folder: Path, benchmark: str, name: str, content: str | bytes) -> list[str]:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return [problem.ground_truth for problem in read_problems([folder / name], load_benchmark(benchmark))]


def eval_refusal(folder: Path, benchmark: str, name: str, content: str) -> str:
    with pytest.raises(DataError) as error:
        asked(folder, benchmark, name, content)
    return str(error.value).replace(f"{folder}/", "")


def test_evaluation_knows_gzip_by_its_content(tmp_path):
    assert asked(tmp_path, "math500", "c.csv", gzip.compress(b"problem,answer\nWhat is 3+4?,7\n")) == ["7"]


@pytest.mark.parametrize("_", ["H074-column_that_a_sibling_benchmark_takes"])
@pytest.mark.parametrize("benchmark", ["aime24", "aime25"])
def test_both_years_of_aime_take_the_same_columns(tmp_path, benchmark, _):
    assert asked(tmp_path, benchmark, "q.jsonl", '{"question": "Find 3+4.", "answer": "7"}\n') == ["7"]
    solved = {"problem": "Find 3+4.", "solution": "We add: $\\boxed{007}$."}
    assert asked(tmp_path, benchmark, "s.jsonl", json.dumps(solved)) == ["7"]


@pytest.mark.parametrize("_", ["H075-aime24_first_digit_box"])
@pytest.mark.parametrize(
    ("box", "truth"),
    [("\\boxed{\\textbf{(033)}}", "33"), ("\\framebox{204}", "204"), ("\\boxed{\\text{7.}}", "7"), ("\\boxed{0}", "0")],
)
def test_the_last_box_is_the_answer_whatever_stands_in_it(tmp_path, box, truth, _):
    row = {"problem": "Find 30+3.", "solution": f"First \\boxed{{30}} is ten thrice. In all {box}."}
    assert asked(tmp_path, "aime24", "s2.jsonl", json.dumps(row)) == [truth]


@pytest.mark.parametrize("_", ["H075-brother"])
def test_a_last_box_without_a_number_is_refused_not_passed_over(tmp_path, _):
    row = {"problem": "Find 30+3.", "solution": "First \\boxed{30}, in all \\boxed{x+3}."}
    assert eval_refusal(tmp_path, "aime24", "s.jsonl", json.dumps(row)) == (
        "s.jsonl:1: column 'answer' holds no answer. Fill it, or remove the row."
    )


EVAL = [
    (
        "H076-blank_cell_called_missing",
        ("math500", "c.csv", "problem,answer\nWhat is 3+4?\n"),
        "c.csv:2: column 'answer' is blank (null). Fill it, or remove the row.",
    ),
    (
        "H076-null",
        ("math500", "c.jsonl", '{"problem": "q", "answer": null}'),
        "c.jsonl:1: column 'answer' is blank (null). Fill it, or remove the row.",
    ),
    (
        "H077-id_reused_by_other_problem",
        (
            "amc23",
            "i.jsonl",
            '{"id": 0, "question": "What is 3+4?", "answer": "7"}\n'
            '{"id": 0, "question": "What is 3+5?", "answer": "8"}\n',
        ),
        "i.jsonl:2: problem 0 is also at i.jsonl:1, with another text: one id for two problems. Give each its own id, "
        "or remove the column of ids: the text's hash is the id then.",
    ),
    (
        "H077-one_problem_two_answers",
        ("amc23", "i.jsonl", '{"id": 0, "question": "q", "answer": 7}\n{"id": 0, "question": "q", "answer": 8}\n'),
        "i.jsonl:2: problem 0 is also at i.jsonl:1, with another answer. Keep the row whose answer is right.",
    ),
    (
        "H078-eval_takes_nan",
        ("math500", "na.jsonl", '{"problem": "What is 3+4?", "answer": NaN}\n'),
        "na.jsonl:1: column 'answer' is nan. Give text or a number, or remove the row.",
    ),
    (
        "H078-false",
        ("math500", "na.jsonl", '{"problem": "What is 3+5?", "answer": false}\n'),
        "na.jsonl:1: column 'answer' is False. Give text or a number, or remove the row.",
    ),
    (
        "D-prompt_is_a_list",
        ("math500", "p.jsonl", '{"problem": ["q"], "answer": 1}\n'),
        "p.jsonl:1: column 'problem' is ['q']. A prompt needs text or a number.",
    ),
    (
        "D-form_feed",
        ("math500", "f.jsonl", '{"problem": "\\frac12", "answer": 1}\n'),
        "f.jsonl:1: column 'problem' has the control character U+000C at character 1, which \\frac with one backslash "
        "becomes. Write \\\\frac in JSON.",
    ),
]


@pytest.mark.parametrize(("words", "message"), [row[1:] for row in EVAL], ids=[row[0] for row in EVAL])
def test_evaluation_refuses_in_whole_messages(tmp_path, words, message):
    assert eval_refusal(tmp_path, *words) == message


@pytest.mark.parametrize(
    ("answer", "truth"),
    [(3e-05, "0.00003"), (["0.035\n"], "0.035"), ([0.5, "2"], "0.5, 2"), (4e21, "4" + "0" * 21), ("[0, 1]", "[0, 1]")],
)
def test_evaluation_reads_exact_text(tmp_path, answer, truth):
    assert asked(tmp_path, "math500", "a.jsonl", json.dumps({"problem": "q", "answer": answer})) == [truth]


def test_repeats_can_be_dropped_in_evaluation(tmp_path):
    row = {"prompt": [{"role": "user", "content": "q"}], "data_source": "d", "reward_model": {"ground_truth": "2"}}
    pq.write_table(pa.Table.from_pylist([row, row]), tmp_path / "a.parquet")
    assert len(read_problems([tmp_path / "a.parquet"], drop_repeats=True)) == 1
    with pytest.raises(DataError, match=r"row 1: problem \w+ is also at .*: row 0\. Keep one row a problem, or"):
        read_problems([tmp_path / "a.parquet"])


def verl_file(folder: Path, truth: Any, content: str = "q", kind: pa.DataType | None = None) -> Path:
    model = pa.StructArray.from_arrays([pa.array([truth], kind)], ["ground_truth"])
    prompt = pa.array([[{"role": "user", "content": content}]])
    pq.write_table(pa.table({"prompt": prompt, "reward_model": model}), folder / "t.parquet")
    return folder / "t.parquet"


CHECKED = [
    (float("nan"), "q", "column 'reward_model.ground_truth': the ground truth is nan, no number (1 of 1 rows)."),
    (False, "q", "column 'reward_model.ground_truth': the ground truth is False (1 of 1 rows)."),
    ([], "q", "column 'reward_model.ground_truth': the ground truth is an empty list (1 of 1 rows)."),
    ("\x0crac12", "q", "the ground truth has the control character U+000C at character 1, which \\frac with one"),
    ("1", "\x0crac12", "column 'prompt': a message has the control character U+000C at character 1, which \\frac with"),
]


@pytest.mark.parametrize(("truth", "content", "message"), CHECKED)
def test_preflight_refuses_answers_that_are_none(tmp_path, truth, content, message):
    kind = pa.list_(pa.string()) if truth == [] else None
    with pytest.raises(DataError) as error:
        check_parquet(verl_file(tmp_path, truth, content, kind))
    assert message in str(error.value)


def test_a_list_of_answers_is_refused_where_the_reward_compares_with_one(tmp_path):
    assert check_parquet(verl_file(tmp_path, ["7"]), one_answer=True) == 1
    path = verl_file(tmp_path, ["7", "8"])
    assert check_parquet(path) == 1
    with pytest.raises(DataError, match=r"is a list of 2 answers, \['7', '8'\], and the reward compares with one \(1"):
        check_parquet(path, one_answer=True)


def with_source(folder: Path, truth: Any, source: str) -> Path:
    row = {"prompt": [{"role": "user", "content": "q"}], "data_source": source, "reward_model": {"ground_truth": truth}}
    pq.write_table(pa.Table.from_pylist([row]), folder / "v.parquet")
    return folder / "v.parquet"


@pytest.mark.parametrize(
    ("truth", "text"), [(["0.035\n"], "0.035"), (3e-05, "0.00003"), ([4e21], "4" + "0" * 21), (7, "7")]
)
def test_evaluation_of_verl_parquet_hands_the_reward_one_exact_text(tmp_path, truth, text):
    problems = rewarded(read_problems([with_source(tmp_path, truth, "math_dapo")]))
    assert [problem.ground_truth for problem in problems.values()] == [text]


def test_a_list_of_several_truths_is_refused_for_mathematics_and_left_to_other_rewards(tmp_path):
    found = read_problems([with_source(tmp_path, ["7", "8"], "math_dapo")])
    with pytest.raises(DataError) as error:
        rewarded(found)
    assert str(error.value).replace(f"{tmp_path}/", "") == (
        "v.parquet: row 0: column 'reward_model.ground_truth' is a list of 2 answers: ['7', '8']. The reward compares "
        "with one text. Join the parts of one answer by commas, or keep one of several equal ones."
    )
    problems = rewarded(found, "code")
    assert [problem.ground_truth for problem in problems.values()] == [["7", "8"]]
