"""Data files that verl would refuse after the models have loaded, or in its first step."""

from __future__ import annotations

import json
import re
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import open_dict

from s2l_ext.errors import DataError
from s2l_ext.training.preflight import check_data

CHAT = [{"role": "user", "content": "2 + 2?"}]


@pytest.fixture
def data_check(composed_once) -> Callable[..., None]:
    def run(train_files: object, val_files: object, source: str = "register") -> None:
        cfg = composed_once("grpo/toy", [])
        with open_dict(cfg):
            cfg.data.train_files, cfg.data.val_files = train_files, val_files
            cfg.reward.reward_manager.source = source
        check_data(cfg)

    return run


def rows_of(path, **columns) -> str:
    """A parquet file of one row with a prompt, an answer and these columns; None leaves one out."""
    row = {"data_source": "mine", "prompt": CHAT, "reward_model": {"ground_truth": "4"}, "extra_info": {"index": 1}}
    row = {name: value for name, value in {**row, **columns}.items() if value is not None}
    pq.write_table(pa.Table.from_pylist([row]), path)
    return str(path)


@pytest.mark.parametrize("files", [None, []])
@pytest.mark.parametrize("key", ["train_files", "val_files"])
def test_a_list_without_a_file_is_refused(data_check, tmp_path, key: str, files: object) -> None:
    good = rows_of(tmp_path / "good.parquet")
    with pytest.raises(DataError, match=rf"^data.{key}={re.escape(str(files))}: verl reads at least one file there"):
        data_check(**{"train_files": good, "val_files": good, key: files})


def test_files_that_verl_could_not_join_are_refused_with_column_and_types(data_check, tmp_path) -> None:
    text, number = rows_of(tmp_path / "a.parquet"), rows_of(tmp_path / "b.parquet", reward_model={"ground_truth": 4})
    data_check(train_files=text, val_files=text)
    with pytest.raises(DataError, match=r"column 'reward_model' is .*string.* in .*a.parquet and .*int64.* in .*b.pa"):
        data_check(train_files=[text, number], val_files=text)
    more = rows_of(tmp_path / "c.parquet", level=3)
    data_check(train_files=[text, more], val_files=text)


def test_rows_without_a_source_are_refused_where_verls_manager_reads_it(data_check, tmp_path) -> None:
    without, good = rows_of(tmp_path / "a.parquet", data_source=None), rows_of(tmp_path / "b.parquet")
    with pytest.raises(DataError, match=r"a.parquet: no column 'data_source', which verl's reward managers read"):
        data_check(train_files=good, val_files=without)
    data_check(train_files=good, val_files=without, source="importlib")


def test_json_lines_as_a_benchmark_publishes_them_are_refused(data_check, tmp_path) -> None:
    good, raw = rows_of(tmp_path / "a.parquet"), tmp_path / "gsm8k.jsonl"
    raw.write_text('{"question": "2 + 2?", "answer": "#### 4"}\n')
    with pytest.raises(DataError, match=r"gsm8k.jsonl: line 1 has question, answer and no 'prompt' .*`s2l data gsm8k`"):
        data_check(train_files=str(raw), val_files=good)
    raw.write_text(json.dumps({"prompt": CHAT, "data_source": "mine"}) + "\n")
    data_check(train_files=str(raw), val_files=good)
