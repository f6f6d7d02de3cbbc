"""Where a benchmark's rows come from: CSV and parquet with any columns."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.arguments import add_arguments, job_of
from s2l_ext.evaluation.benchmarks import Benchmark, load_benchmark
from s2l_ext.evaluation.problems import read_problems

MINE = Benchmark("mine", "{q}", "a", reward="s2l_ext.rewards.math:compute_score")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))


def test_every_kind_of_file_holds_the_same_problems(tmp_path: Path) -> None:
    rows = [{"q": 'a "quoted", b?\nsecond line', "a": "3"}, {"q": "ñ = ?", "a": "4"}]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "a.csv").write_text('\ufeffq,a\n"a ""quoted"", b?\nsecond line",3\nñ = ?,4\n', encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    found = [read_problems([tmp_path / f"a.{kind}"], MINE) for kind in ("jsonl", "csv", "parquet")]
    for problems in found:
        assert [p.messages[0]["content"] for p in problems] == [row["q"] for row in rows]
        assert [p.ground_truth for p in problems] == ["3", "4"]
        assert [p.id for p in problems] == [p.id for p in found[0]]
    assert [p.where.rpartition(":")[2] for p in found[1]] == ["3", "4"]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"q,a\n1\n", r"a\.csv:2: column 'a' is blank \(null\)\. Fill it"),
        (b"q,a\n1,2,3\n", r"a\.csv:2: more fields than the first line has names"),
        (b"q,a\n1, \n", r"a\.csv:2: column 'a' is blank"),
        (b"q,a\n,2\n", r"a\.csv:2: column 'q' is blank"),
        (b'q,a\n"1,2\n', "cannot be read as UTF-8 CSV"),
        (b"q,a\n\xff,2\n", "cannot be read as UTF-8 CSV"),
        (b"q,a\n", "no rows"),
    ],
)
def test_a_damaged_csv_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=reason):
        read_problems([path], MINE)


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    for name, reason in (("a.json", r"a\.json: expected a file that ends in"), ("a.parquet", "not a readable parquet")):
        (tmp_path / name).write_text("{}")
        with pytest.raises(DataError, match=reason):
            read_problems([tmp_path / name], MINE)


def test_a_benchmark_cannot_apply_to_verl_parquet(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "user", "content": "x"}], "data_source": "d", "reward_model": {"ground_truth": "2"}}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: verl parquet has its own prompts, --benchmark mine cannot apply"):
        read_problems([tmp_path / "a.parquet"], MINE)


def job(*words: str) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return job_of(parser.parse_args(["--model", "m", "--out", "o.json", *words]))


def test_a_benchmark_brings_its_own_data() -> None:
    assert job("--benchmark", "math500").data == ("hf://HuggingFaceH4/MATH-500@test",)
    assert job("--benchmark", "math500", "--data", "a.jsonl", "--data", "hf://b/c").data == (
        Path("a.jsonl"),
        "hf://b/c",
    )
    for words in ([], ["--benchmark", "livecodebench"]):
        with pytest.raises(ConfigError, match="--data is missing"):
            job(*words)


def test_where_the_rows_are_kept_is_no_part_of_the_fingerprint() -> None:
    benchmark = load_benchmark("math500")
    assert "hub" not in benchmark.fingerprint() and benchmark.fingerprint()["prompt"] == benchmark.prompt
