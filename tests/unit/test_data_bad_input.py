"""Broken files, the same ones for every converter of ``s2l data``: one message that names the place, and no output."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.cli import main
from s2l_ext.data import dapo

TRACE = "<think>\nOne and one make {0}, as counting shows.\n</think>\n\nThe answer is \\boxed{{{0}}}."
TASK = {"task_id": "t{0}", "prompt": "def f{0}():\n", "canonical_solution": "    return {0}\n", "entry_point": "f{0}"}
ROWS: dict[str, dict[str, Any]] = {
    "gsm8k": {"id": "a{0}", "problem": "Find {0}.", "answer": "{0}", "solution": "It is {0}.", "source": "train"},
    "openr1": {"problem": "Find {0}.", "answer": "{0}", "source": "olympiads", "generations": [TRACE]},
    "dapo": {
        "prompt": [{"role": "user", "content": f"{dapo.BEFORE}\n\nFind {{0}}.\n\n{dapo.AFTER}"}],
        "reward_model": {"ground_truth": "{0}"},
    },
    "humaneval": TASK | {"test": "def check(candidate):\n    assert candidate() == {0}\n"},
    "jsonl": {"id": "a{0}", "prompt": "Find {0}.", "answer": "{0}", "trace": TRACE},
}
OPTIONS = {"humaneval": ["--trace", "canonical"], "jsonl": ["--data-source", "own", "--trace-field", "trace"]}
CONVERTERS = list(ROWS)


def filled(value: Any, number: int) -> Any:
    if isinstance(value, dict):
        return {name: filled(one, number) for name, one in value.items()}
    return [filled(one, number) for one in value] if isinstance(value, list) else value.format(number)


def row(converter: str, number: int = 2, **changes: Any) -> dict[str, Any]:
    return filled(ROWS[converter], number) | changes


def lines(*rows: dict[str, Any]) -> bytes:
    return "".join(json.dumps(one) + "\n" for one in rows).encode()


def parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def archive(content: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        member = tarfile.TarInfo("rows.jsonl")
        member.size = len(content)
        file.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def empty_zip() -> bytes:
    buffer = io.BytesIO()
    zipfile.ZipFile(buffer, "w").close()
    return buffer.getvalue()


def arrow(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    with pa.ipc.new_file(buffer, table.schema) as writer:
        writer.write_table(table)
    return buffer.getvalue()


def run(converter: str, path: Path, capsys: Any, *words: str) -> tuple[int, str]:
    """Exit status and message; after a refusal there is no output, and the message is three sentences at most."""
    out = path.parent / "out"
    given = ["--input", str(path), "--out", str(out), "--json", *OPTIONS.get(converter, []), *words]
    status = main(["data", converter, *given])
    message = capsys.readouterr().err.strip()
    if status:
        assert not out.exists() and message.startswith("s2l: error: ") and message.count(". ") <= 2
    return status, message.removeprefix(f"s2l: error: {path}")


# ---- files ---------------------------------------------------------------------------------------------------------


def broken_files(good: bytes, table: pa.Table) -> dict[str, tuple[bytes, str]]:
    one = good.splitlines()[0]
    name, value = next(iter(json.loads(one).items()))
    twice = one[:-1] + f", {json.dumps(name)}: {json.dumps(value)}}}\n".encode()
    column = table.append_column(table.column_names[0], table.column(0))
    return {
        "empty.jsonl": (b"", ": the file has no rows."),
        "mark.jsonl": (b"\xef\xbb\xbf", ": the file has no rows."),
        "tar.jsonl": (archive(good), ": is a tar archive, which is not read here. Unpack it: tar -xf tar.jsonl"),
        "tgz.jsonl": (gzip.compress(archive(good)), ": is a tar archive, which is not read here."),
        "zip.jsonl": (empty_zip(), ": is a zip archive (or a workbook), which is not read here."),
        "twice.jsonl.gz": (gzip.compress(gzip.compress(good)), ": is compressed with gzip twice. Unpack it: gunzip"),
        "inside.gz": (gzip.compress(parquet(table)), ": is parquet inside gzip, which is not read here. Unpack"),
        "arrow.parquet": (arrow(table), ": is an Arrow (Feather) file, which is not read here. Write it as parquet"),
        "utf16.jsonl": (good.decode().encode("utf-16-le"), ":1: has a NUL byte. UTF-16 text and binary files have"),
        "utf32.jsonl": (good.decode().encode("utf-32"), ": is UTF-32 text, and only UTF-8 is read."),
        "zeros.jsonl": (good + bytes(4096), ":3: has a NUL byte."),
        "cut.jsonl": (good[:-9], ":2: not JSON ("),
        "csv.jsonl": (
            b"problem,answer\n1,2\n",
            ":1: not JSON (Expecting value at column 1): 'problem,answer'. ",
        ),
        "key.jsonl": (
            good + twice,
            f":3: not JSON that can be read (the key '{name}' is twice in one ",
        ),
        "digits.jsonl": (
            b'{"a": 1' + b"0" * 5000 + b"}\n",
            ":1: not JSON that can be read (a number of thousands of ",
        ),
        "column.parquet": (
            parquet(column),
            f": has the column '{name}' twice. Only one could be read;",
        ),
        "part.parquet": (parquet(table)[:-9], ": not a readable parquet file ("),
    }


FILES = list(broken_files(lines(row("gsm8k")), pa.table({"id": ["a"]})))


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("converter", CONVERTERS)
def test_a_broken_file_is_named_with_what_it_is(tmp_path, capsys, converter, name):
    rows = [row(converter), row(converter, 3)]
    content, message = broken_files(lines(*rows), pa.Table.from_pylist(rows))[name]
    (tmp_path / name).write_bytes(content)
    status, said = run(converter, tmp_path / name, capsys)
    assert status == 2 and said.startswith(message)


@pytest.mark.slow
@pytest.mark.parametrize("converter", CONVERTERS)
def test_a_folder_and_names_of_nothing(tmp_path, capsys, converter):
    (tmp_path / "x.jsonl").mkdir()
    (tmp_path / "loop.jsonl").symlink_to(tmp_path / "loop.jsonl")
    for name, message in (("x.jsonl", ": is a folder, not a file."), ("gone.jsonl", ": no such file.")):
        assert run(converter, tmp_path / name, capsys)[1].startswith(message)
    for name in ("loop.jsonl", "x" * 300, "a\0b.jsonl"):
        assert run(converter, tmp_path / name, capsys)[1].endswith(": no such file.")


@pytest.mark.parametrize("converter", CONVERTERS)
def test_a_file_is_what_it_holds_whatever_its_name_says(tmp_path, capsys, converter, rows_of):
    rows = [row(converter), row(converter, 3)]
    good, written = lines(*rows), {}
    same = {
        "a.jsonl": good,
        "mark.jsonl": b"\xef\xbb\xbf" + good,
        "crlf.jsonl": good.replace(b"\n", b"\r\n"),
        "gzip.jsonl": gzip.compress(good),
        "parquet.jsonl": parquet(pa.Table.from_pylist(rows)),
        "lines.parquet": good,
    }
    for name, content in same.items():
        path = tmp_path / name.replace(".", "_") / name
        path.parent.mkdir()
        path.write_bytes(content)
        assert run(converter, path, capsys) == (0, "")
        (written[name],) = (rows_of(one) for one in (path.parent / "out").glob("*.parquet"))
    assert len(written["a.jsonl"]) == 2 and all(found == written["a.jsonl"] for found in written.values())


@pytest.mark.parametrize("converter", CONVERTERS)
def test_rows_of_another_data_set_are_refused(tmp_path, capsys, converter):
    path = tmp_path / "train.jsonl"
    for other in set(CONVERTERS) - {converter, "gsm8k" if converter == "openr1" else "openr1"}:
        path.write_bytes(lines(row(other)))
        status, message = run(converter, path, capsys)
        assert status == 2 and message.startswith(":1: ")
        assert " is missing. F" in message or "no 'ground_truth'" in message or "not one message" in message


# ---- values --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("converter", "changes", "message"),
    [
        ("gsm8k", {"id": ["a", "b"]}, "column 'id' is ['a', 'b'], not text."),
        ("gsm8k", {"id": float("nan")}, "column 'id' is nan, not text."),
        ("gsm8k", {"id": False}, "column 'id' is False, not text."),
        ("gsm8k", {"id": "a\x07"}, "column 'id' has the control character U+0007 at character 2."),
        ("gsm8k", {"solution": ["It is 2."]}, "column 'solution' is ['It is 2.']. A solution is text; leave it"),
        ("gsm8k", {"solution": {"text": "2"}}, "column 'solution' is {'text': '2'}. A solution is text; leave it"),
        ("gsm8k", {"solution": "['It is 2.']"}, "column 'solution' is a list written as text: \"['It is 2.']\"."),
        ("gsm8k", {"problem": "['Find 2.']"}, "column 'problem' is a list written as text: \"['Find 2.']\"."),
        ("openr1", {"problem": "['Find 2.']"}, "column 'problem' is a list written as text: \"['Find 2.']\"."),
        ("openr1", {"problem": float("nan")}, "column 'problem' holds nan, not text. Write text, or null for none."),
        ("openr1", {"source": float("inf")}, "column 'source' holds inf, not text."),
        ("openr1", {"question_type": ["MCQ"]}, "column 'question_type' holds ['MCQ'], not text."),
        ("openr1", {"is_reasoning_complete": ["false"]}, "column 'is_reasoning_complete' has 'false'. A flag is true,"),
        ("openr1", {"correctness_math_verify": ["no"]}, "column 'correctness_math_verify' has 'no'. A flag is true,"),
    ],
)
def test_a_value_of_another_type_is_not_written_as_its_python_text(tmp_path, capsys, converter, changes, message):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(row(converter, 3), row(converter, **changes)))
    status, said = run(converter, path, capsys)
    assert status == 2 and said.startswith(f":2: {message}")


def test_an_id_of_nought_stays_and_an_empty_one_is_made(tmp_path, capsys, rows_of):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(row("gsm8k", 2, id=0), row("gsm8k", 3, id=""), row("gsm8k", 4, id=1)))
    assert run("gsm8k", path, capsys) == (0, "")
    ids = [one["extra_info"]["id"] for one in rows_of(tmp_path / "out" / "train.parquet")]
    assert ids[::2] == ["0", "1"] and ids[1].startswith("train-")


def test_a_blank_gold_is_no_answer_even_where_rows_without_a_trace_are_kept(tmp_path, capsys):
    path = tmp_path / "train.jsonl"
    path.write_bytes(lines(row("openr1"), row("openr1", 3, answer=" \u00a0")))
    assert run("openr1", path, capsys, "--without-trace", "keep") == (0, "")
    report = json.loads((tmp_path / "out" / "train.report.json").read_text())
    assert (report["rows"], report["dropped_rows"]) == (1, {"no answer": 1})
