"""A user's own JSONL: named fields, counted traces, and an error for everything that would have to be guessed."""

from __future__ import annotations

import argparse
import json
import random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data import user_jsonl
from s2l_ext.data.checks import check_parquet
from s2l_ext.data.user_jsonl import UserJsonl
from s2l_ext.errors import DataError

RIGHT = "<think>1+1=2</think>\\boxed{2}"
FIELDS = {
    "prompt_field": "q",
    "answer_field": "meta.gold",
    "trace_field": "cot",
    "tier_field": "level",
    "id_field": "key",
}


def row(number: int = 0, **changes: Any) -> dict[str, Any]:
    return {"q": f"problem {number}", "meta": {"gold": 2}, "cot": RIGHT, "level": 1, "key": f"k{number}", **changes}


def test_every_field_of_a_row(tmp_path, jsonl, rows_of):
    options = {"instruction": "Think."}
    (written,) = UserJsonl(data_source="mine", **FIELDS, **options).convert(
        jsonl(tmp_path / "a.jsonl", [row()]), tmp_path
    )
    assert (written.rows, written.with_trace, written.tiers) == (1, 1, {1: 1})
    assert check_parquet(tmp_path / "train.parquet") == 1
    (record,) = rows_of(tmp_path / "train.parquet")
    del record["extra_info"]["index"]
    assert record == {
        "data_source": "mine",
        "prompt": [{"role": "user", "content": "problem 0\nThink."}],
        "ability": "general",
        "reward_model": {"style": "rule", "ground_truth": "2"},
        "extra_info": {"id": "k0", "split": "train", "trace": RIGHT},
        "tier": 1,
    }


def test_only_prompt_and_answer_are_needed(tmp_path, jsonl, rows_of):
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1+1?", "name": "x"}]
    rows = [{"prompt": chat, "answer": "2"}, {"prompt": "2+2?", "answer": "4"}]
    (written,) = UserJsonl(data_source="mine").convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path)
    assert (written.rows, written.with_trace, written.dropped_traces, written.tiers) == (2, 0, {}, {})
    first, second = rows_of(tmp_path / "train.parquet")
    assert first["prompt"] == [chat[0], {"role": "user", "content": "1+1?"}]
    assert len(second["extra_info"]["id"]) == 16 and "tier" not in first


TRACES = [
    (RIGHT, None),
    (None, "missing"),
    ("", "missing"),
    ("<think>1+1", "unfinished thinking"),
    ("<think></think>\\boxed{2}", "answer only"),
    ("<think>1+1=3</think>\\boxed{3}", "wrong answer"),
    ("<think>a</think>\\boxed{x^}", "unparsable answer"),
    ("1+1=2</think>so 2", None),
]
FAULTS = {"missing": 2, "unfinished thinking": 1, "answer only": 1, "wrong answer": 1, "unparsable answer": 1}


@pytest.mark.parametrize(("keep", "rows"), [(True, 8), (False, 2)])
def test_traces_are_counted_by_reason(tmp_path, keep, rows, jsonl, rows_of):
    path = jsonl(tmp_path / "a.jsonl", [row(number, cot=trace) for number, (trace, _) in enumerate(TRACES)])
    (written,) = UserJsonl(data_source="mine", **FIELDS, without_trace="keep" if keep else "drop").convert(
        path, tmp_path
    )
    assert written.dropped_traces == FAULTS
    assert (written.rows, written.with_trace) == (rows, 2)
    assert written.dropped_rows == ({} if keep else {"no usable trace": 6})
    kept = [record["extra_info"]["trace"] for record in rows_of(tmp_path / "train.parquet")]
    assert [trace for trace in kept if trace] == [RIGHT, "<think>\n1+1=2</think>so 2"]


def test_a_row_may_lack_the_trace_field(tmp_path, jsonl):
    record = row()
    del record["cot"]
    (written,) = UserJsonl(data_source="mine", **FIELDS).convert(jsonl(tmp_path / "a.jsonl", [record]), tmp_path)
    assert written.dropped_traces == {"missing": 1}


@pytest.mark.parametrize(("check", "with_trace"), [("math", 1), ("exact", 1), ("form", 3)])
def test_ways_to_check_a_trace(tmp_path, check, with_trace, jsonl):
    answers = ["Ada Lovelace", "2", "2"]
    texts = ["<answer>Ada Lovelace</answer>", "\\boxed{3}", "\\boxed{1}"]
    rows = [
        row(n, meta={"gold": answer}, cot=f"because so {text}")
        for n, (answer, text) in enumerate(zip(answers, texts, strict=True))
    ]
    (written,) = UserJsonl(data_source="mine", **FIELDS, trace_check=check).convert(
        jsonl(tmp_path / "a.jsonl", rows), tmp_path
    )
    assert written.with_trace == with_trace


def test_order_and_shards_change_no_id_and_no_split(tmp_path, jsonl, rows_of):
    rows = [{"prompt": f"problem {number}", "answer": number} for number in range(50)]
    shuffled = random.Random(2).sample(rows, 50)
    shards = [jsonl(tmp_path / "b.jsonl", shuffled[:20]), jsonl(tmp_path / "c.jsonl", shuffled[20:])]
    UserJsonl(data_source="mine", val_share=0.2).convert(jsonl(tmp_path / "a.jsonl", rows), tmp_path / "one")
    UserJsonl(data_source="mine", val_share=0.2).convert(shards, tmp_path / "two")
    for name in ("train", "val"):
        kept = [
            {r["extra_info"]["id"]: r for r in rows_of(tmp_path / side / f"{name}.parquet")} for side in ("one", "two")
        ]
        assert kept[0] == kept[1]
    splits = [
        {r["extra_info"]["id"] for r in rows_of(tmp_path / "one" / f"{name}.parquet")} for name in ("train", "val")
    ]
    assert not splits[0] & splits[1] and len(splits[0] | splits[1]) == 50 and 3 <= len(splits[1]) <= 20


@pytest.mark.parametrize(
    ("levels", "kind"), [(["a", "b"], pa.string()), ([1, 2], pa.int64()), ([0.5, 2], pa.float64())]
)
def test_tiers_keep_their_type(tmp_path, levels, kind, jsonl):
    path = jsonl(tmp_path / "a.jsonl", [row(number, level=level) for number, level in enumerate(levels)])
    UserJsonl(data_source="mine", **FIELDS).convert(path, tmp_path)
    table = pq.read_table(tmp_path / "train.parquet")
    assert table.schema.field("tier").type == kind and table.column("tier").to_pylist() == levels


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"q": None}, "field 'q' is None. Give text or a number"),
        ({"q": " "}, "field 'q' is ' '"),
        ({"q": []}, "field 'q' does not end in a turn to be answered"),
        ({"q": [{"role": "assistant", "content": "a"}]}, "field 'q' does not end in a turn"),
        ({"q": [{"role": "user"}]}, "field 'q', message 0 is {'role': 'user'}"),
        ({"q": ["text"]}, "field 'q', message 0 is 'text'"),
        ({"q": [{"role": "human", "content": "a"}]}, "field 'q', message 0 has role 'human'. Roles: system, user"),
        ({"q": "problem 0"}, "field 'q' is the prompt of"),
        ({"key": "k0"}, "field 'key': id 'k0' is also at"),
        ({"key": None}, "field 'key' is None"),
        ({"meta": {}}, "field 'meta.gold' is missing. Fields: q, meta, cot, level, key. Add it, or name another"),
        ({"meta": 3}, "field 'meta.gold' is missing"),
        ({"meta": {"gold": True}}, "field 'meta.gold' is True"),
        ({"meta": {"gold": ["2", "3"]}}, "field 'meta.gold' is a list of 2 answers: ['2', '3']"),
        ({"cot": ["a"]}, "field 'cot' is ['a']. A trace is text"),
        ({"level": None}, "field 'level' is None. A tier is text or a number"),
        ({"level": True}, "field 'level' is True"),
        ({"level": float("nan")}, "field 'level' is nan"),
        ({"level": 2**63}, "field 'level' is 9223372036854775808"),
        ({"level": "hard"}, "field 'level' is 'hard', but int at"),
        ({"level": 1.5}, "field 'level' is 1.5, but int at"),
        ({"q": "\ud800"}, "half of a surrogate pair"),
    ],
)
def test_bad_rows_are_named_and_nothing_is_written(tmp_path, changes, message, jsonl):
    path = jsonl(tmp_path / "a.jsonl", [row(0), row(1, **changes)])
    with pytest.raises(DataError) as error:
        UserJsonl(data_source="mine", **FIELDS).convert(path, tmp_path / "out")
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", ["{", "[1]", "3", '{"a": ' + "[" * 100_000])
def test_lines_that_are_no_object(tmp_path, content):
    (tmp_path / "a.jsonl").write_text(f"\n{content}\n")
    with pytest.raises(DataError, match=r"a\.jsonl:2: "):
        UserJsonl(data_source="mine").convert(tmp_path / "a.jsonl", tmp_path / "out")


def test_files_that_cannot_be_read(tmp_path, jsonl):
    (tmp_path / "a.jsonl").write_bytes(b'{"prompt": "\xff"}')
    with pytest.raises(DataError, match="cannot be read as UTF-8"):
        UserJsonl(data_source="mine").convert(tmp_path / "a.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match="no such file"):
        UserJsonl(data_source="mine").convert(tmp_path / "b.jsonl", tmp_path / "out")
    with pytest.raises(DataError, match=r"c\.jsonl: the file has no rows"):
        UserJsonl(data_source="mine").convert(jsonl(tmp_path / "c.jsonl", []), tmp_path / "out")
    with pytest.raises(DataError, match="check='math2'"):
        UserJsonl(data_source="mine", trace_check="math2").convert(tmp_path / "c.jsonl", tmp_path / "out")


def test_files_of_unknown_origin_are_not_replaced(tmp_path, jsonl, rows_of):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "answer": "b"}])
    pq.write_table(pa.table({"a": [1]}), tmp_path / "train.parquet")
    with pytest.raises(DataError, match=r"train\.parquet exists and holds other data \(not known where from; .*--over"):
        UserJsonl(data_source="mine").convert(path, tmp_path)
    (tmp_path / "train.parquet").write_text("no parquet")
    with pytest.raises(DataError, match="not known where from"):
        UserJsonl(data_source="mine").convert(path, tmp_path)
    UserJsonl(data_source="mine").convert(path, tmp_path, overwrite=True)
    assert len(rows_of(tmp_path / "train.parquet")) == 1
    with pytest.raises(DataError, match="with data source mine; this is .* with data source yours"):
        UserJsonl(data_source="yours").convert(path, tmp_path)


@pytest.mark.slow
def test_many_rows_are_written_in_batches(tmp_path, jsonl):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": f"p{n}", "answer": n} for n in range(700)])
    UserJsonl(data_source="mine").convert(path, tmp_path)
    with pq.ParquetFile(tmp_path / "train.parquet") as file:
        assert file.num_row_groups == 3 and file.metadata.num_rows == 700


def test_command_line(tmp_path, capsys, jsonl):
    parser = argparse.ArgumentParser()
    user_jsonl.add_arguments(parser)
    path = jsonl(tmp_path / "a.jsonl", [row(n) for n in range(3)])
    named = {"--prompt-field": "q", "--answer-field": "meta.gold", "--trace-field": "cot"}
    fields = [word for pair in {**named, "--tier-field": "level", "--id-field": "key"}.items() for word in pair]
    words = ["--input", str(path), "--out", str(tmp_path), "--data-source", "mine", *fields]
    assert user_jsonl.main(parser.parse_args(words)) == 0
    assert "train.parquet: 3 rows, 3 with a trace" in capsys.readouterr().out
    assert user_jsonl.main(parser.parse_args([*words, "--json", "--limit", "2"])) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["rows"] == 2
    with pytest.raises(SystemExit):
        parser.parse_args(words[:4])
