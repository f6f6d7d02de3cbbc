"""Column checks name file, row, column and count."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data import checks
from s2l_ext.data.checks import check_parquet
from s2l_ext.errors import DataError

GOOD = {"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"style": "rule", "ground_truth": "2"}}


def write(folder: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    path = folder / "data.parquet"
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def test_good_file_returns_its_rows(tmp_path):
    assert check_parquet(write(tmp_path, [GOOD] * 7)) == 7


def test_max_rows_stops_before_a_later_bad_row(tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "BATCH_ROWS", 2)
    path = write(tmp_path, [GOOD] * 5 + [{**GOOD, "reward_model": None}])
    assert check_parquet(path, max_rows=5) == 5
    with pytest.raises(DataError):
        check_parquet(path)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.parquet: no such file"):
        check_parquet(tmp_path / "nowhere.parquet")


def test_not_parquet(tmp_path):
    path = tmp_path / "train.parquet"
    path.write_text('{"problem": "1+1?"}\n')
    with pytest.raises(DataError, match=r"train\.parquet: not a readable parquet file"):
        check_parquet(path)


def test_no_rows(tmp_path):
    schema = pa.Table.from_pylist([GOOD]).schema
    with pytest.raises(DataError, match="has no rows"):
        check_parquet(write(tmp_path, [], schema))


def test_missing_prompt_column_suggests_the_nearest(tmp_path):
    path = write(tmp_path, [{"prompts": GOOD["prompt"], "reward_model": GOOD["reward_model"]}])
    with pytest.raises(DataError, match=r"column 'prompt' is missing.*prompts, reward_model\. Did you mean 'prompts'"):
        check_parquet(path)


def test_missing_answer_field_lists_what_is_there(tmp_path):
    path = write(tmp_path, [{**GOOD, "reward_model": {"style": "rule", "ground_trut": "2"}}])
    with pytest.raises(DataError, match=r"'reward_model': field 'ground_truth' is missing.*Did you mean 'ground_trut'"):
        check_parquet(path)


def test_answer_column_that_is_no_record(tmp_path):
    path = write(tmp_path, [{**GOOD, "reward_model": "2"}])
    with pytest.raises(DataError, match=r"column 'reward_model' holds string, not a record"):
        check_parquet(path)


def test_prompt_that_is_plain_text(tmp_path):
    with pytest.raises(DataError, match=r"row 0, column 'prompt': the prompt is str '1\+1\?', not a list"):
        check_parquet(write(tmp_path, [{**GOOD, "prompt": "1+1?"}]))


def test_message_without_content(tmp_path):
    rows = [GOOD, {**GOOD, "prompt": [{"role": "user", "content": ""}]}]
    with pytest.raises(DataError, match=r"row 1, column 'prompt': a message has an empty role or content"):
        check_parquet(write(tmp_path, rows))


@pytest.mark.parametrize("empty", [None, "", "  "])
def test_empty_ground_truth_names_first_row_and_count(tmp_path, monkeypatch, empty):
    monkeypatch.setattr(checks, "BATCH_ROWS", 3)
    bad = {**GOOD, "reward_model": {"style": "rule", "ground_truth": empty}}
    path = write(tmp_path, [GOOD] * 4 + [bad] + [GOOD] * 3 + [bad])
    with pytest.raises(DataError, match=r"row 4, column 'reward_model\.ground_truth'.*\(2 of 9 rows\)"):
        check_parquet(path)


def test_another_prompt_key(tmp_path):
    path = write(tmp_path, [{"question": GOOD["prompt"], "reward_model": GOOD["reward_model"]}])
    assert check_parquet(path, prompt_key="question") == 1


@pytest.mark.parametrize("name", ["trace", "session_id", "uid", "s2l_source"])
def test_column_with_a_name_of_verls_own_is_refused(tmp_path, name):
    with pytest.raises(DataError, match=f"column '{name}' has a name that verl uses itself.*extra_info"):
        check_parquet(write(tmp_path, [{**GOOD, name: "x"}]))


def test_a_file_that_declares_more_than_memory_holds_is_refused(tmp_path, monkeypatch):
    pq.write_table(pa.table({"prompt": [[{"role": "user", "content": "q"}]]}), tmp_path / "train.parquet")
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=1))
    with pytest.raises(DataError, match=r"train\.parquet: row group 0 declares .* GB, 0\.0 GB of memory are free"):
        check_parquet(tmp_path / "train.parquet")
