"""Open-R1 rows: every reason to drop one, counted exactly; ids and choices that no order or shard changes."""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data import openr1
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.gsm8k import INSTRUCTION
from s2l_ext.data.openr1 import MATH_TIERS, OpenR1
from s2l_ext.data.prompts import parquet_table, prompt_ids, tiers_of
from s2l_ext.errors import DataError

RIGHT = "<think>\n1+1=2\n</think>\n\nIt is $\\boxed{2}$."
WRONG = RIGHT.replace("boxed{2}", "boxed{3}")
CHOICE = "Choose. (A) 1 (B) 2 (C) 3 (D) 4"


def row(problem: str, *generations: str, **changes: Any) -> dict[str, Any]:
    base = {"problem": problem, "answer": "2", "source": "olympiads", "question_type": "math-word-problem"}
    return {**base, "generations": list(generations or (RIGHT,)), **changes}


ROWS = [
    row("usable", source="cn_contest"),
    row("second is usable", WRONG, RIGHT, WRONG),
    row("third is usable", "<think>1+1", "<think></think>\\boxed{2}", RIGHT, source="aops_forum"),
    row("no use", "<think>1+1=2</think> It is two.", "<think>a</think>b</think>\\boxed{2}"),
    row("odd answers", "<think>1+1</think>\\boxed{x^}", "<think>a<|im_end|></think>\\boxed{2}", ""),
    row("recorded as unfinished", RIGHT, is_reasoning_complete=[False]),
    row("none", generations=[]),
    row("usable", WRONG),
    row(" "),
    row("no gold", answer=None),
    row("said to be a choice", question_type="MCQ"),
    row(CHOICE, answer="B"),
    row(f"{CHOICE} How many are even?", answer="2"),
    row("from elsewhere", source="synthetic_math"),
    row("from nowhere", source=None),
]
DROPPED = {
    "no usable trace": 4,
    "duplicate problem": 1,
    "no problem text": 1,
    "no answer": 1,
    "multiple choice": 2,
    "other source": 2,
}
FAULTS = {
    "wrong answer": 1,
    "unfinished thinking": 2,
    "answer only": 1,
    "no final answer": 1,
    "broken think tags": 1,
    "unparsable answer": 1,
    "chat token inside": 1,
    "missing": 2,
}


def test_every_reason_is_counted(tmp_path, jsonl):
    (written,) = OpenR1().convert(jsonl(tmp_path / "a.jsonl", ROWS), tmp_path / "out")
    assert (written.rows, written.with_trace) == (4, 4)
    assert written.dropped_rows == DROPPED
    assert written.dropped_traces == FAULTS
    assert written.tiers == {"cn_contest": 1, "aops_forum": 1, "olympiads": 2}
    assert list(written.tiers) == ["cn_contest", "aops_forum", "olympiads"]
    report = json.loads((tmp_path / "out" / "train.report.json").read_text())
    assert report["dropped_rows"] == DROPPED and report["dropped_traces"] == FAULTS and report["rows"] == 4
    assert written.rows + sum(written.dropped_rows.values()) == len(ROWS)


def test_a_row_as_verl_reads_it(tmp_path, jsonl, rows_of):
    OpenR1().convert(jsonl(tmp_path / "a.jsonl", ROWS), tmp_path)
    assert check_parquet(tmp_path / "train.parquet") == 4
    first = rows_of(tmp_path / "train.parquet")[0]
    extra = first.pop("extra_info")
    assert first == {
        "data_source": "openr1_math",
        "prompt": [{"role": "user", "content": f"usable\n{INSTRUCTION}"}],
        "ability": "math",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "tier": "cn_contest",
    }
    assert extra["trace"] == RIGHT and extra["split"] == "train" and extra["id"].startswith("openr1-")
    table = parquet_table([tmp_path / "train.parquet"])
    assert tiers_of(table, "tier", MATH_TIERS).tolist() == [0, 3, 1, 3]
    assert prompt_ids(table)[0] == extra["id"]


def test_options_keep_what_is_dropped_otherwise(tmp_path, jsonl, rows_of):
    options = {
        "multiple_choice": "keep",
        "other_sources": "keep",
        "without_trace": "keep",
        "instruction": "",
        "name": "all",
    }
    (written,) = OpenR1(**options).convert(jsonl(tmp_path / "a.jsonl", ROWS), tmp_path)
    assert written.dropped_rows == {"duplicate problem": 1, "no problem text": 1, "no answer": 1}
    assert (written.rows, written.with_trace) == (12, 7)
    assert list(written.tiers) == ["cn_contest", "aops_forum", "olympiads", "synthetic_math", "unknown"]
    rows = rows_of(tmp_path / "all.parquet")
    assert [record["extra_info"]["trace"] for record in rows].count("") == 5
    assert rows[0]["prompt"][0]["content"] == "usable"


def test_order_and_shards_change_neither_ids_nor_traces(tmp_path, jsonl, rows_of):
    rows = [row(f"problem {number}", *([WRONG] * (number % 3)), RIGHT) for number in range(40)]
    shuffled = random.Random(1).sample(rows, len(rows))
    options = {"val_share": 0.3}
    shards = [jsonl(tmp_path / "b.jsonl", shuffled[:13]), jsonl(tmp_path / "c.jsonl", shuffled[13:])]
    OpenR1(**options).convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "one")
    OpenR1(**options).convert(shards, tmp_path / "two")
    for name in ("train.parquet", "val.parquet"):
        kept = [
            {record["extra_info"]["id"]: record for record in rows_of(tmp_path / side / name)}
            for side in ("one", "two")
        ]
        assert kept[0] == kept[1] and len(kept[0]) > 5
    ids = [{r["extra_info"]["id"] for r in rows_of(tmp_path / "one" / f"{name}.parquet")} for name in ("train", "val")]
    assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 40


@pytest.mark.slow
def test_parquet_shards_and_two_workers_give_the_same(tmp_path, rows_of):
    rows = [{**record, "is_reasoning_complete": None} for record in ROWS]
    pq.write_table(pa.Table.from_pylist(rows[:6]), tmp_path / "a.parquet", row_group_size=2)
    pq.write_table(pa.Table.from_pylist(rows[6:]), tmp_path / "b.parquet")
    files = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    (one,) = OpenR1().convert(files, tmp_path / "one")
    (two,) = OpenR1(workers=2).convert(files, tmp_path / "two")
    assert one.dropped_rows == two.dropped_rows == {**DROPPED, "no usable trace": 3}
    assert rows_of(tmp_path / "one" / "train.parquet") == rows_of(tmp_path / "two" / "train.parquet")
    (limited,) = OpenR1().convert(files, tmp_path / "three", limit=2)
    assert limited.rows == 2 and limited.dropped_rows == {"no usable trace": 1, "duplicate problem": 1}


def test_recorded_labels_are_believed_and_nothing_is_graded(tmp_path, monkeypatch, jsonl, rows_of):
    monkeypatch.setattr(openr1.traces, "answer_fault", lambda *_: pytest.fail("graded"))
    rows = [
        row("label says right", WRONG, correctness_math_verify=[True]),
        row("label says wrong", RIGHT, RIGHT, correctness_math_verify=[False, True]),
        row("no label", RIGHT, correctness_math_verify=None),
        row("form counts still", "<think>1", correctness_math_verify=[True]),
    ]
    (written,) = OpenR1(trust_labels=True).convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
    assert [record["extra_info"]["trace"] for record in rows_of(tmp_path / "train.parquet")] == [WRONG, RIGHT]
    assert written.dropped_traces == {"wrong answer": 1, "no correctness label": 1, "unfinished thinking": 1}
    with pytest.raises(DataError, match=r"b\.jsonl:1: --trust-labels needs column 'correctness_math_verify'"):
        OpenR1(trust_labels=True).convert(jsonl(tmp_path / "b.jsonl", [row("a")]), tmp_path / "x")


def test_time_of_a_row_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(openr1.traces, "answer_fault", lambda trace, answer, seconds: "not judged in time")
    now = iter(range(0, 1000, 20))
    monkeypatch.setattr(openr1.time, "monotonic", lambda: next(now))
    judged = openr1.judge(openr1.Candidate("a", "2", "x", [WRONG] * 4, [None] * 4, [None] * 4), OpenR1())
    assert judged == ("", ["not judged in time"] * 4)


def test_messages_stand_in_for_generations_and_one_text_for_a_list(tmp_path, jsonl):
    turns = [{"role": "user", "content": "q"}, {"role": "assistant", "content": RIGHT}]
    rows = [{"problem": "a", "answer": 2, "source": "olympiads", "messages": turns}, row("b", generations=RIGHT)]
    (written,) = OpenR1().convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
    assert written.with_trace == 2


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"answer": "2"}, "a.jsonl:2: column 'problem' is missing. Found: answer"),
        ({"problem": "a"}, "a.jsonl:2: column 'answer' is missing"),
        (row("a", answer=["2", "3"]), "a.jsonl:2: column 'answer' is a list of 2 answers: ['2', '3']"),
        (row("a", generations=3), "a.jsonl:2: column 'generations' is neither a text nor a list"),
        (row("a", generations=[3]), "a.jsonl:2: column 'generations' is neither"),
        (row("a", generations=None, messages="text"), "a.jsonl:2: column 'messages' is no list"),
        (row("a", is_reasoning_complete=[True, True]), "column 'is_reasoning_complete' has 2 values for 1 generations"),
        (row("a", correctness_math_verify=True), "column 'correctness_math_verify' has bool for 1 generations"),
        ([1], "a.jsonl:2: expected a JSON object"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, bad, message, jsonl):
    with pytest.raises(DataError) as error:
        OpenR1().convert(jsonl(tmp_path / "a.jsonl", [row("first"), bad]), tmp_path / "deep" / "out")
    assert message in str(error.value)
    assert not (tmp_path / "deep").exists()


def test_bad_files(tmp_path, jsonl):
    (tmp_path / "a.parquet").write_text("no parquet")
    with pytest.raises(DataError, match=r"a\.parquet: not a readable parquet file"):
        OpenR1().convert(tmp_path / "a.parquet", tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        OpenR1().convert(tmp_path / "b.parquet", tmp_path / "out")
    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "c.parquet")
    with pytest.raises(DataError, match=r"c\.parquet:0: column 'problem' is missing"):
        OpenR1().convert(tmp_path / "c.parquet", tmp_path / "out")
    with pytest.raises(DataError, match=r"train\.parquet: no rows to write \(1 no usable trace\)"):
        OpenR1().convert(jsonl(tmp_path / "d.jsonl", [row("a", WRONG)]), tmp_path / "out")
    with pytest.raises(DataError, match=r"val\.parquet: no rows to write \(no row belongs to it\)"):
        OpenR1(val_share=0.0001).convert(jsonl(tmp_path / "e.jsonl", [row("a")]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def command(*words: object) -> int:
    parser = argparse.ArgumentParser()
    openr1.add_arguments(parser)
    return openr1.main(parser.parse_args([str(word) for word in words]))


def test_command_line(tmp_path, capsys, jsonl):
    path = jsonl(tmp_path / "a.jsonl", ROWS)
    assert command("--input", path, "--out", tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "4 rows, 4 with a trace" in shown and "dropped rows: 4 no usable trace, " in shown
    assert (
        "dropped traces: 2 missing, 2 unfinished thinking, 1 answer only" in shown
        and "tiers: 1 cn_contest, 1 aops_forum, 2 olympiads" in shown
    )
    words = ["--without-trace", "keep", "--multiple-choice", "keep", "--other-sources", "keep", "--json"]
    assert command("--input", path, "--out", tmp_path / "out", *words) == 0
    (file,) = json.loads(capsys.readouterr().out)["files"]
    assert (file["rows"], file["with_trace"]) == (12, 7)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--limit", "0"], "--limit 0"),
        (["--val-share", "1"], "--val-share 1.0 must be in"),
        (["--val-share", "0.1", "--name", "val"], "needs another --name than val"),
        (["--workers", "0"], "--workers 0"),
        (["--row-seconds", "0"], "--row-seconds 0.0"),
        (["--input", "a.jsonl"], "a.jsonl is given twice"),
    ],
)
def test_settings_out_of_range(tmp_path, words, message):
    with pytest.raises(DataError, match=message):
        command("--input", "a.jsonl", "--out", tmp_path, *words)


def test_other_data_is_not_replaced_unasked(tmp_path, jsonl, rows_of):
    a, b = (jsonl(tmp_path / f"{name}.jsonl", [row(name)]) for name in "ab")
    OpenR1().convert(a, tmp_path / "out")
    OpenR1().convert(a, tmp_path / "out")
    with pytest.raises(DataError, match=r"from a\.jsonl .* this is `s2l data openr1` from b\.jsonl .*--overwrite"):
        OpenR1().convert(b, tmp_path / "out")
    assert rows_of(tmp_path / "out" / "train.parquet")[0]["prompt"][0]["content"].startswith("a\n")
    OpenR1().convert(b, tmp_path / "out", overwrite=True)
    assert rows_of(tmp_path / "out" / "train.parquet")[0]["prompt"][0]["content"].startswith("b\n")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train.parquet", "train.report.json"]
