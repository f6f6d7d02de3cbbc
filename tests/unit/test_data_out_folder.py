"""Where converters write: other inputs of the same name, names that lead elsewhere, folders that cannot be."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from s2l_ext import cli
from s2l_ext.data.gsm8k import Gsm8k
from s2l_ext.data.user_jsonl import UserJsonl
from s2l_ext.errors import DataError


@pytest.fixture
def two(tmp_path: Path, jsonl: Callable[..., Path]) -> list[Path]:
    """Two inputs called train.jsonl."""
    for name in ("set1", "set2"):
        (tmp_path / name).mkdir()
    rows = [{"prompt": "1+1?", "answer": "2"}], [{"prompt": "1+2?", "answer": "3"}, {"prompt": "1+3?", "answer": "4"}]
    return [jsonl(tmp_path / f"set{n}" / "train.jsonl", each) for n, each in enumerate(rows, 1)]


def convert(files: Path | list[Path], out: Path, **options: Any) -> int:
    overwrite = options.pop("overwrite", False)
    return UserJsonl(**{"data_source": "mine"} | options).convert(files, out, overwrite=overwrite)[0].rows


def test_other_inputs_of_the_same_name_are_other_data(two: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert convert(two[0], out) == 1
    words = (
        r"train\.parquet exists and holds other data \(`s2l data jsonl` from train\.jsonl with data source mine; "
        "these inputs have another content"
    )
    with pytest.raises(DataError, match=words):
        convert(two[1], out)
    assert pq.read_metadata(out / "train.parquet").num_rows == 1
    assert convert(two[1], out, overwrite=True) == 2
    with pytest.raises(DataError, match="these inputs have another content"):
        convert(two[0], out)


def test_the_same_inputs_are_the_same_under_another_name_and_in_another_order(two: list[Path], tmp_path: Path) -> None:
    assert convert(two, tmp_path / "out") == 3
    moved = two[0].rename(tmp_path / "first.jsonl")
    assert convert([two[1], moved], tmp_path / "out") == 3
    with pytest.raises(DataError, match="this is .* from first.jsonl with data source mine"):
        convert(moved, tmp_path / "out")
    with pytest.raises(DataError, match="with data source mine; this is .* with data source yours"):
        convert([moved, two[1]], tmp_path / "out", data_source="yours")


def test_a_file_of_the_same_source_without_an_origin_is_not_replaced(two: list[Path], tmp_path: Path) -> None:
    convert(two[0], tmp_path)
    path = tmp_path / "train.parquet"
    source = {b"s2l.source": (pq.read_schema(path).metadata or {})[b"s2l.source"]}
    pq.write_table(pq.read_table(path).replace_schema_metadata(source), path)
    with pytest.raises(DataError, match="with data source mine; it does not say of what content"):
        convert(two[0], tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "../esc", "..", ".", "/esc", "a\0b"])
def test_a_name_that_is_no_file_name_is_refused(name: str, two: list[Path], tmp_path: Path) -> None:
    for converter in (UserJsonl(data_source="mine", name=name), Gsm8k(name=name)):
        with pytest.raises(DataError, match="--name .* is not a file name"):
            converter.convert(two[0], tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set1", "set2"]


@pytest.mark.parametrize("out", ["file", "file/x/y", "nowhere", "/dev/null/x"])
def test_a_folder_that_cannot_be_made_is_refused(
    out: str, two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "none")
    words = ["data", "jsonl", "--data-source", "mine", "--input", str(two[0]), "--out", str(tmp_path / out)]
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert f"--out {tmp_path / out}: " in shown and "is not a folder. Choose another --out." in shown
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of pyarrow's writer, closed again
@pytest.mark.parametrize(
    ("place", "name"),
    [(pq.ParquetWriter, "write_table"), (pq.ParquetWriter, "close"), (os, "replace"), (Path, "write_text")],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_a_full_disk_is_named_and_leaves_no_stage(
    place: Any, name: str, two: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(*rest: Any, **named: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with (
        monkeypatch.context() as patch,
        pytest.raises(DataError, match=r"cannot be written \(No space.*another --out than .*out\."),
    ):
        patch.setattr(place, name, no_space)
        convert(two[0], tmp_path / "out")
    assert not [path.name for path in tmp_path.rglob(".s2l-data-*")]


def test_a_name_that_is_too_long_is_said(two: list[Path], tmp_path: Path) -> None:
    for options, out in (({"name": "n" * 300}, "out"), ({}, "o" * 300)):
        with pytest.raises(DataError, match=r"cannot be written \(.*File name too long"):
            convert(two[0], tmp_path / out, **options)


def test_an_input_that_cannot_be_read_is_named(two: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.jsonl: no such file"):
        convert([two[0], tmp_path / "none.jsonl"], tmp_path / "out")
    assert not (tmp_path / "out").exists()
