"""GSM8K to verl parquet: real rows, stable ids, and every bad row named by file, line and column."""

from __future__ import annotations

import argparse
import gzip
import json
import random
from pathlib import Path

import pytest

from s2l_ext.data import gsm8k
from s2l_ext.data.checks import check_parquet
from s2l_ext.errors import DataError

FIXTURES = Path(__file__).parents[1] / "fixtures"
TRAIN = FIXTURES / "gsm8k_train_slice.jsonl"
TEST = FIXTURES / "gsm8k_test_slice.jsonl"


def test_real_slices_become_two_usable_files(tmp_path):
    written = gsm8k.Gsm8k().convert([TRAIN, TEST], tmp_path / "out")
    assert [(Path(file.path).name, file.rows, file.with_trace) for file in written] == [
        ("test.parquet", 10, 10),
        ("train.parquet", 20, 20),
    ]
    assert check_parquet(tmp_path / "out" / "train.parquet") == 20
    assert check_parquet(tmp_path / "out" / "test.parquet") == 10


def test_every_field_of_a_row(tmp_path, rows_of):
    gsm8k.Gsm8k().convert(TEST, tmp_path, limit=2)
    first, second = rows_of(tmp_path / "test.parquet")
    trace = "It takes 2/2=1 bolt of white fiber\nSo the total amount of fabric is 2+1=3 bolts of fabric"
    question = (
        "A robe takes 2 bolts of blue fiber and half that much white fiber.  How many bolts in total does it take?"
    )
    index = second["extra_info"].pop("index")
    assert second == {
        "data_source": "gsm8k",
        "prompt": [{"role": "user", "content": f"{question}\n{gsm8k.INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "3"},
        "extra_info": {"id": "gsm8k-test-1", "split": "test", "trace": trace},
    }
    assert "\\boxed{}" in gsm8k.INSTRUCTION
    assert 0 <= index < 2**48 and index != first["extra_info"]["index"]


def test_ids_and_indices_survive_reordering(tmp_path, jsonl, rows_of):
    records = [json.loads(line) for line in TRAIN.read_text().splitlines()]
    for record in records:
        del record["id"]
    shuffled = random.Random(3).sample(records, len(records))
    gsm8k.Gsm8k().convert(jsonl(tmp_path / "train_a.jsonl", records), tmp_path / "a")
    gsm8k.Gsm8k().convert(jsonl(tmp_path / "train_b.jsonl", shuffled), tmp_path / "b")
    keys = [
        {row["prompt"][0]["content"]: (row["extra_info"]["id"], row["extra_info"]["index"]) for row in rows}
        for rows in (rows_of(tmp_path / side / "train.parquet") for side in "ab")
    ]
    assert keys[0] == keys[1]
    assert len(set(keys[0].values())) == 20


def test_original_form_gives_the_same_answer_and_trace(tmp_path, jsonl, rows_of):
    records = [json.loads(line) for line in TEST.read_text().splitlines()]
    original = [{"question": record["problem"], "answer": record["solution"]} for record in records]
    gsm8k.Gsm8k().convert(TEST, tmp_path / "a")
    gsm8k.Gsm8k().convert(jsonl(tmp_path / "test.jsonl", original), tmp_path / "b")
    picked = [
        [(row["prompt"], row["reward_model"], row["extra_info"]["trace"], row["extra_info"]["index"]) for row in rows]
        for rows in (rows_of(tmp_path / side / "test.parquet") for side in "ab")
    ]
    assert picked[0] == picked[1]


def test_gzip_equals_plain(tmp_path, rows_of):
    packed = tmp_path / "gsm8k_train_slice.jsonl.gz"
    packed.write_bytes(gzip.compress(TRAIN.read_bytes()))
    gsm8k.Gsm8k().convert(packed, tmp_path / "a")
    gsm8k.Gsm8k().convert(TRAIN, tmp_path / "b")
    assert rows_of(tmp_path / "a" / "train.parquet") == rows_of(tmp_path / "b" / "train.parquet")


def test_thousands_separators_leave_numbers_and_nothing_else(tmp_path, jsonl, rows_of):
    records = [
        {"question": f"q{i}", "answer": f"#### {text}"} for i, text in enumerate(["1,234,567", "1,2", "(1,234)"])
    ]
    gsm8k.Gsm8k(name="train").convert(jsonl(tmp_path / "x.jsonl", records), tmp_path)
    answers = [row["reward_model"]["ground_truth"] for row in rows_of(tmp_path / "train.parquet")]
    assert answers == ["1234567", "1,2", "(1,234)"]


GOOD = {"id": "a", "problem": "1+1?", "answer": "2", "source": "x-train"}


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"id": "b", "answer": "2"}, r"train\.jsonl:2: column 'problem' is missing\. Found: id, answer"),
        ({"id": "b", "problem": "2+2?"}, r"train\.jsonl:2: column 'answer' is missing"),
        ({"id": "b", "problem": "2+2?", "answer": " "}, r"train\.jsonl:2: column 'answer' is ' ', not text"),
        ({"id": "b", "problem": None, "answer": "4"}, r"train\.jsonl:2: column 'problem' is None"),
        (
            {"question": "2+2?", "answer": "it is 4"},
            r"train\.jsonl:2: column 'answer' has no final line '#### <answer>'",
        ),
        ({"id": "a", "problem": "2+2?", "answer": "4"}, r"train\.jsonl:2: id 'a' is also at .*train\.jsonl:1"),
        (
            {"id": "b", "problem": " 1+1? ", "answer": "2"},
            r"train\.jsonl:2: the problem of 'b' is also at .*:1 \('a'\)",
        ),
        (["a list"], r"train\.jsonl:2: expected a JSON object, found list"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, bad, message, jsonl):
    path = jsonl(tmp_path / "train.jsonl", [GOOD, bad])
    with pytest.raises(DataError, match=message):
        gsm8k.Gsm8k().convert(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_malformed_json_names_its_line(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(json.dumps(GOOD) + '\n\n{"problem": "1+')
    with pytest.raises(DataError, match=r"train\.jsonl:3: not JSON"):
        gsm8k.Gsm8k().convert(path, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"not gzip at all", ":1: not JSON"), (gzip.compress(TEST.read_bytes())[:-40], ": cannot be read")],
)
def test_broken_gzip(tmp_path, content, message):
    path = tmp_path / "test.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"test\.jsonl\.gz{message}"):
        gsm8k.Gsm8k().convert(path, tmp_path / "out")


def test_missing_and_empty_file(tmp_path, jsonl):
    with pytest.raises(DataError, match="no such file"):
        gsm8k.Gsm8k().convert(tmp_path / "train.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="no rows"):
        gsm8k.Gsm8k().convert(jsonl(tmp_path / "train.jsonl", []), tmp_path / "out")


def test_a_problem_in_train_and_test_is_refused_with_the_count(tmp_path, jsonl):
    leak = [{**GOOD, "id": f"t{i}", "problem": text, "source": "x-test"} for i, text in enumerate(["1+1?", "3+3?"])]
    train, test = jsonl(tmp_path / "a.jsonl", [GOOD]), jsonl(tmp_path / "b.jsonl", leak)
    with pytest.raises(DataError, match=r"1 problems are in two splits.*a\.jsonl:1 \(train\)"):
        gsm8k.Gsm8k().convert([train, test], tmp_path / "out")


def test_unknown_split_asks_for_a_name(tmp_path, jsonl, rows_of):
    path = jsonl(tmp_path / "mine.jsonl", [{"problem": "1+1?", "answer": 2}])
    with pytest.raises(DataError, match="Pass --name"):
        gsm8k.Gsm8k().convert(path, tmp_path / "out")
    gsm8k.Gsm8k(name="custom").convert(path, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "custom.parquet")
    assert (row["reward_model"]["ground_truth"], row["extra_info"]["split"]) == ("2", "custom")


def test_command_prints_json(tmp_path, capsys, rows_of):
    parser = argparse.ArgumentParser()
    gsm8k.add_arguments(parser)
    arguments = ["--input", str(TRAIN), "--input", str(TEST), "--out", str(tmp_path), "--limit", "3", "--json"]
    assert gsm8k.main(parser.parse_args([*arguments, "--instruction", ""])) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert {file["split"]: file["rows"] for file in files} == {"test": 3, "train": 3}
    assert rows_of(tmp_path / "test.parquet")[0]["prompt"][0]["content"].endswith("farmers' market?")


def test_limit_below_one_is_refused(tmp_path):
    parser = argparse.ArgumentParser()
    gsm8k.add_arguments(parser)
    with pytest.raises(DataError, match="--limit 0"):
        gsm8k.main(parser.parse_args(["--input", str(TRAIN), "--out", str(tmp_path), "--limit", "0"]))


SOLUTIONS = [
    ("1+1 = <<1+1=2>>2\n#### 2", None),
    ("2000-1=1999\n#### 1,999", None),
    ("It is 1+1=2 in all", None),
    (None, "missing"),
    ("#### 2", "answer only"),
    ("1+2 = <<1+2=3>>3\n#### 3", "wrong answer"),
    ("1+1=2\n#### x^", "unparsable answer"),
    ("48 + 16 = <<48+16=64>>64 points\n#### 2", "answer not in the reasoning"),
    ("<think>1+1=2", "unfinished thinking"),
    ("1+1=2<|im_end|> yes\n#### 2", "chat token inside"),
]


@pytest.mark.parametrize(("keep", "rows"), [(True, 10), (False, 3)])
def test_solutions_are_checked_against_the_answer_and_counted(tmp_path, keep, rows, jsonl, rows_of):
    records = [
        {"problem": f"q{number}", "answer": "1999" if number == 1 else "2", "solution": solution}
        for number, (solution, _) in enumerate(SOLUTIONS)
    ]
    path = jsonl(tmp_path / "train.jsonl", records)
    (written,) = gsm8k.Gsm8k(without_trace="keep" if keep else "drop").convert(path, tmp_path)
    assert written.dropped_traces == {reason: 1 for _, reason in SOLUTIONS if reason}
    assert (written.rows, written.with_trace) == (rows, 3)
    assert written.dropped_rows == ({} if keep else {"no usable trace": 7})
    traces = [row["extra_info"]["trace"] for row in rows_of(tmp_path / "train.parquet")]
    assert [trace for trace in traces if trace] == ["1+1 = 2", "2000-1=1999", "It is 1+1=2 in all"]
    report = json.loads((tmp_path / "train.report.json").read_text())
    assert report["dropped_traces"] == written.dropped_traces
    assert report["made_by"] == "`s2l data gsm8k` from train.jsonl with data source gsm8k"


def test_other_data_is_not_replaced_unasked(tmp_path, jsonl, rows_of):
    gsm8k.Gsm8k().convert(TRAIN, tmp_path)
    gsm8k.Gsm8k().convert(TRAIN, tmp_path, limit=3)
    assert len(rows_of(tmp_path / "train.parquet")) == 3
    gsm8k.Gsm8k().convert(TEST, tmp_path)
    other = jsonl(tmp_path / "mine_train.jsonl", [GOOD])
    with pytest.raises(DataError, match=r"train\.parquet exists and holds other data .*--overwrite"):
        gsm8k.Gsm8k().convert(other, tmp_path)
    assert len(rows_of(tmp_path / "train.parquet")) == 3
    gsm8k.Gsm8k().convert(other, tmp_path, overwrite=True)
    assert len(rows_of(tmp_path / "train.parquet")) == 1
