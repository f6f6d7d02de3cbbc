"""Files as users bring them, H064 to H073 of a trial with inputs from outside, and their kin: converted or refused."""

from __future__ import annotations

import bz2
import gzip
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data import openr1, user_jsonl
from s2l_ext.data.values import answer_text, plain_number, text_fault
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import load_benchmark
from s2l_ext.evaluation.problems import read_problems

PLAIN = '{"prompt": "What is 3+4?", "answer": "7"}\n'
TRACE = "<think>\nThree and four make seven, as counting shows.\n</think>\n\nThe answer is \\boxed{7}."


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def truths(folder: Path, paths: Path | Sequence[Path], **options: Any) -> list[str]:
    user_jsonl.UserJsonl(data_source="mine", **options).convert(paths, folder / "out")
    return [row["reward_model"]["ground_truth"] for row in pq.read_table(folder / "out" / "train.parquet").to_pylist()]


def refusal(folder: Path, path: Path, fields: dict[str, str] | None = None) -> str:
    """What ``s2l data jsonl`` says, without the folder's name; nothing is written."""
    with pytest.raises(DataError) as error:
        user_jsonl.UserJsonl(data_source="mine", **(fields or {})).convert(path, folder / "out")
    assert not (folder / "out").exists()
    return str(error.value).replace(f"{folder}/", "")


def openr1_refusal(folder: Path, path: Path) -> str:
    with pytest.raises(DataError) as error:
        openr1.OpenR1().convert(path, folder / "out")
    assert not (folder / "out").exists()
    return str(error.value).replace(f"{folder}/", "")


# ---- read ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("_", ["H064-utf8_bom"])
def test_a_byte_order_mark_is_read_over(tmp_path, _):
    assert truths(tmp_path, write(tmp_path, "b.jsonl", "\ufeff" + PLAIN)) == ["7"]


@pytest.mark.parametrize("_", ["H071-gzip_without_suffix"])
def test_gzip_and_parquet_are_known_by_their_content(tmp_path, _):
    assert truths(tmp_path, write(tmp_path, "z.jsonl", gzip.compress(PLAIN.encode()))) == ["7"]
    pq.write_table(pa.Table.from_pylist([json.loads(PLAIN)]), tmp_path / "p.jsonl")
    (tmp_path / "p").mkdir()
    assert truths(tmp_path / "p", tmp_path / "p.jsonl") == ["7"]
    (tmp_path / "t").mkdir()
    assert truths(tmp_path / "t", write(tmp_path, "t.jsonl.gz", PLAIN)) == ["7"]


@pytest.mark.parametrize("_", ["H069-duplicates_refused_one_at_a_time"])
def test_repeats_are_counted_and_dropped_when_asked(tmp_path, _):
    rows = [PLAIN, PLAIN, PLAIN, '{"prompt": "What is  3+4? ", "answer": 8}\n', '{"prompt": "2+2?", "answer": 4}\n']
    path = write(tmp_path, "dup.jsonl", "".join(rows))
    assert refusal(tmp_path, path) == (
        "dup.jsonl:2: field 'prompt' is the prompt of dup.jsonl:1 again. 3 rows are repeats, 1 of them with another "
        "answer. Remove them, or keep the first of each with --drop-repeats."
    )
    (written,) = user_jsonl.UserJsonl(data_source="mine", drop_repeats=True).convert(path, tmp_path / "out")
    assert written.rows == 2
    assert written.dropped_rows == {"repeated problem": 2, "repeated problem with another answer": 1}


NUMBERS = [
    (3e-05, "0.00003"),
    (4e21, "4000000000000000000000"),
    (6e4, "60000.0"),
    (-1.5e-7, "-0.00000015"),
    (-0.0, "0.0"),
    (9007199254740993, "9007199254740993"),
    (2**70, "1180591620717411303424"),
    ("6e4", "60000"),
    ("3e-05", "0.00003"),
    ("1e999999999", "1e999999999"),
    ("2e", "2e"),
    (["0.035\n"], "0.035"),
    ('["0.035\\n"]', "0.035"),
    ([0.00003], "0.00003"),
    ("[0, 1]", "[0, 1]"),
]


@pytest.mark.parametrize(("value", "text"), NUMBERS)
def test_answers_become_exact_text(tmp_path, value, text):
    assert truths(tmp_path, write(tmp_path, "a.jsonl", json.dumps({"prompt": "q", "answer": value}))) == [text]


def test_answers_that_are_no_mathematics_keep_their_spelling(tmp_path):
    path = write(tmp_path, "a.jsonl", json.dumps({"prompt": "q", "answer": "6e4"}))
    assert truths(tmp_path, path, trace_check="exact") == ["6e4"]


def test_numbers_of_parquet_become_exact_text(tmp_path):
    kinds = {"a": pa.float32(), "b": pa.float64(), "c": pa.decimal128(30, 10), "d": pa.list_(pa.float64())}
    (a, b, c, d), texts = (
        ([3e-05], [4e21], ["0.0000000007"], [[2.5]]),
        ["0.00003", "4" + "0" * 21, "0.0000000007", "2.5"],
    )
    columns = {"a": a, "b": b, "c": pa.array(c).cast(kinds["c"]), "d": d}
    for name, text in zip(kinds, texts, strict=True):
        table = pa.table({"prompt": ["q"], "answer": pa.array(columns[name], kinds[name])})
        pq.write_table(table, tmp_path / f"{name}.parquet")
        user_jsonl.UserJsonl(data_source="mine").convert(tmp_path / f"{name}.parquet", tmp_path / name)
        (row,) = pq.read_table(tmp_path / name / "train.parquet").to_pylist()
        assert row["reward_model"]["ground_truth"] == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (np.float32(3e-05), "0.00003"),
        (np.float64(0.1), "0.1"),
        (np.int64(2**62), str(2**62)),
        (np.array(["7"], dtype=object), "7"),
        (np.array([[7]]).reshape(1), "7"),
        (np.array(2.5), "2.5"),
    ],
)
def test_values_of_numpy(value, text):
    assert answer_text(value, "f:1", "column 'a'") == text


def test_what_is_no_number():
    assert [plain_number(v) for v in (True, np.bool_(0), float("nan"), float("-inf"), "7", None)] == [None] * 6


# ---- refused: converters -------------------------------------------------------------------------------------------

LATEX = '{"prompt": "What is \\frac{6}{8} in lowest terms?", "answer": "\\frac34"}\n'
REFUSED = [
    (
        "H065-nan_answer",
        '{"prompt": "What is 3+4?", "answer": NaN}\n',
        "a.jsonl:1: field 'answer' is nan. Give text or a number, or remove the row.",
    ),
    (
        "H065-infinity",
        '{"prompt": "What is 3+4?", "answer": -Infinity}\n',
        "a.jsonl:1: field 'answer' is -inf. Give text or a number, or remove the row.",
    ),
    (
        "H065-false",
        '{"prompt": "What is 3+4?", "answer": [false]}\n',
        "a.jsonl:1: field 'answer' is False. Give text or a number, or remove the row.",
    ),
    (
        "H066-latex_not_escaped",
        LATEX,
        "a.jsonl:1: field 'prompt' has the control character U+000C at character 9, which \\frac with one backslash "
        "becomes. Write \\\\frac in JSON.",
    ),
    (
        "H066-backspace",
        '{"prompt": "q", "answer": "\\beta"}\n',
        "a.jsonl:1: field 'answer' has the control character U+0008 at character 1, which \\beta with one backslash "
        "becomes. Write \\\\beta in JSON.",
    ),
    (
        "H066-tab",
        '{"prompt": "Say \\text{yes}", "answer": "1"}\n',
        "a.jsonl:1: field 'prompt' has the control character U+0009 at character 5, which \\text with one backslash "
        "becomes. Write \\\\text in JSON.",
    ),
    (
        "H066-escape",
        '{"prompt": "a\\u001b[0m", "answer": "1"}\n',
        "a.jsonl:1: field 'prompt' has the control character U+001B at character 2. No text needs it; remove it.",
    ),
    (
        "H067-json_list",
        '[\n {\n  "prompt": "What is 3+4?",\n  "answer": "7"\n }\n]',
        "a.jsonl: is one JSON list. JSON lines are wanted: one object a line, no brackets around them. Convert it: "
        "jq -c '.[]' a.jsonl > rows.jsonl",
    ),
    (
        "H067-list_on_one_line",
        f"[{PLAIN.strip()}, {PLAIN.strip()}]\n",
        "a.jsonl: is one JSON list. JSON lines are wanted: one object a line, no brackets around them. Convert it: "
        "jq -c '.[]' a.jsonl > rows.jsonl",
    ),
    (
        "H067-indented_objects",
        '{\n "prompt": "q"\n}\n',
        "a.jsonl:1: a JSON object over several lines. JSON lines are wanted: one object a line. Convert it: jq -c . "
        "a.jsonl > rows.jsonl",
    ),
    ("H068-empty_file", "", "a.jsonl: the file has no rows. Expected JSON lines: one JSON object a line."),
    ("H068-blank_lines", "\n \n", "a.jsonl: the file has no rows. Expected JSON lines: one JSON object a line."),
    (
        "H071-bzip2",
        bz2.compress(PLAIN.encode()),
        "a.jsonl: is compressed with bzip2, which is not read here. Unpack it: bunzip2 a.jsonl",
    ),
    (
        "H071-zstd",
        b"\x28\xb5\x2f\xfd\x04\x00",
        "a.jsonl: is compressed with zstd, which is not read here. Unpack it: zstd -d a.jsonl",
    ),
    (
        "H064-utf16",
        PLAIN.encode("utf-16"),
        "a.jsonl: is UTF-16 text, and only UTF-8 is read. Convert it: iconv -f UTF-16 -t UTF-8 a.jsonl",
    ),
    (
        "H071-git_lfs",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "a.jsonl: is a pointer of Git LFS, not the data. Fetch the file: git lfs pull --include a.jsonl",
    ),
    (
        "F3-several_answers",
        '{"prompt": "q", "answer": ["7", "8"]}\n',
        "a.jsonl:1: field 'answer' is a list of 2 answers: ['7', '8']. The reward compares with one text. Join the "
        "parts of one answer by commas, or keep one of several equal ones.",
    ),
    (
        "F3-no_answer_in_the_list",
        '{"prompt": "q", "answer": []}\n',
        "a.jsonl:1: field 'answer' is a list of 0 answers: []. The reward compares with one text. Join the parts of "
        "one answer by commas, or keep one of several equal ones.",
    ),
    (
        "D-messages_as_json_text",
        json.dumps({"prompt": json.dumps([{"role": "user", "content": "q"}]), "answer": "1"}),
        'a.jsonl:1: field \'prompt\' is a list written as text: \'[{"role": "user", "content": "q"}]\'. It would be '
        "read with its brackets and escapes. Write the list itself (json.loads).",
    ),
    (
        "D-nul",
        '{"prompt": "a\\u0000b", "answer": "1"}\n',
        "a.jsonl:1: has a NUL character. No text has one, and readers stop at it; remove it.",
    ),
]


@pytest.mark.parametrize(("content", "message"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
def test_what_cannot_be_read_is_said_whole(tmp_path, content, message):
    assert refusal(tmp_path, write(tmp_path, "a.jsonl", content)) == message


def test_a_folder_is_no_file(tmp_path):
    (tmp_path / "d").mkdir()
    write(tmp_path / "d", "x.jsonl", PLAIN)
    assert refusal(tmp_path, tmp_path / "d") == "d: is a folder, not a file. Give the files in it (x.jsonl)."
    with pytest.raises(DataError, match=r"--data .*/d: is a folder, not a file\. Give the files in it \(x\.jsonl\)\."):
        read_problems([tmp_path / "d"], load_benchmark("math500"))


def test_a_trace_as_json_text_is_refused_and_one_with_control_characters_dropped(tmp_path):
    fields = {"trace_field": "cot"}
    path = write(tmp_path, "a.jsonl", json.dumps({"prompt": "q", "answer": 7, "cot": json.dumps([TRACE])}))
    assert refusal(tmp_path, path, fields).startswith("a.jsonl:1: field 'cot' is a list written as text: ")
    path = write(tmp_path, "b.jsonl", json.dumps({"prompt": "q", "answer": 7, "cot": f"\x0crac12 {TRACE}"}))
    (written,) = user_jsonl.UserJsonl(data_source="mine", **(fields or {})).convert(path, tmp_path / "out")
    assert written.dropped_traces == {"control character inside": 1} and written.with_trace == 0


@pytest.mark.parametrize(
    "text",
    ["a\tb", "a\tan apple", "\to do", "line\nequal\r\nnext", "x\n\ty", "5\tfractions", "caf\u00e9 \u2028", "\\frac12"],
)
def test_tabs_and_line_ends_of_plain_text_stay(text):
    assert text_fault(text) is None


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("2\times3", "\\times"),
        ("\theta", "\\theta"),
        ("x\to 0", "\\to"),
        ("\tan(x)", "\\tan"),
        ("\tfrac12", "\\tfrac"),
        ("\left(\right)", "\\right"),
        ("\rho", "\\rho"),
        ("\nabla f", "\\nabla"),
        ("a \neq 5", "\\neq"),
        ("\x07lpha", "\\alpha"),
        ("\x0bec", "\\vec"),
    ],
)
def test_every_letter_that_an_escape_takes(text, command):
    assert f"which {command} with one backslash becomes" in str(text_fault(text))


# ---- refused: Open-R1 ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("_", ["H070-generations_as_json_text"])
@pytest.mark.parametrize("column", ["generations", "is_reasoning_complete", "messages"])
def test_lists_as_json_text_are_refused(tmp_path, column, _):
    row = {"problem": "What is 3+4?", "answer": "7", "source": "olympiads", "generations": [TRACE]}
    wrong = {"generations": [TRACE], "is_reasoning_complete": [], "messages": [{"role": "assistant", "content": TRACE}]}
    path = write(tmp_path, "g.jsonl", json.dumps({**row, column: json.dumps(wrong[column])}))
    assert openr1_refusal(tmp_path, path).startswith(f"g.jsonl:1: column '{column}' is a list written as text: '[")


@pytest.mark.parametrize("_", ["H072-columns_not_listed"])
def test_the_columns_of_the_file_are_listed(tmp_path, _):
    row = {
        "data_source": "math_dapo",
        "prompt": [{"role": "user", "content": "q"}],
        "reward_model": {"ground_truth": "1"},
    }
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "v.parquet")
    assert openr1_refusal(tmp_path, tmp_path / "v.parquet") == (
        "v.parquet:0: column 'problem' is missing. Found: data_source, prompt, reward_model. It is verl parquet "
        "already, which needs no conversion."
    )


@pytest.mark.parametrize("_", ["H073-class_label_source"])
def test_sources_that_were_found_are_named(tmp_path, _):
    rows = [{"problem": f"q{n}", "answer": "7", "source": n // 2, "generations": [TRACE]} for n in range(3)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert openr1_refusal(tmp_path, tmp_path / "c.parquet") == (
        "c.parquet:0: column 'source': no row has one of cn_contest, aops_forum, amc_aime, olympiads, olympiads_ref. "
        "Found: 0 (2 rows), 1 (1 rows); a number is a class label without its name. Write the names, or pass "
        "--other-sources keep."
    )


def test_open_r1_drops_and_counts_broken_text_and_repeats_with_another_answer(tmp_path):
    base = {"answer": "7", "source": "olympiads", "generations": [TRACE]}
    rows = [
        {"problem": "q", **base},
        {"problem": "q", **base, "answer": 8},
        {"problem": "\x0crac12 is?", **base},
        {"problem": "r", **base, "answer": "\x08eta"},
        {"problem": "s", **base, "answer": ["7"]},
    ]
    path = write(tmp_path, "a.jsonl", "".join(f"{json.dumps(row)}\n" for row in rows))
    (written,) = openr1.OpenR1().convert(path, tmp_path / "out")
    assert written.rows == 2
    assert written.dropped_rows == {"control character inside": 2, "duplicate problem with another answer": 1}
