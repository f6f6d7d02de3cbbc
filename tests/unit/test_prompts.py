"""Prompt ids, tiers, warm-start files and file digests: by hand, and every refusal with what it names."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data.prompts import (
    PromptTable,
    dataset_table,
    match_pass_rates,
    parquet_table,
    prompt_id,
    prompt_ids,
    read_pass_rates,
    require_enough,
    tiers_of,
    values_at,
)
from s2l_ext.errors import DataError
from s2l_ext.utils.digests import file_digests


def table(**columns: list) -> PromptTable:
    return PromptTable(list(columns), lambda name: columns[name])


def messages(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


# ---- ids ----------------------------------------------------------------------------------------------------------


def test_same_text_same_id_and_an_own_id_wins() -> None:
    assert prompt_id(messages("1+1")) == prompt_id(messages("1+1"), {"index": 5})
    assert prompt_id(messages("1+1")) != prompt_id(messages("1+2"))
    assert prompt_id(messages("1+1"), {"id": "aime-7"}) == "aime-7"
    assert len(prompt_id(messages("1+1"))) == 16


def test_id_does_not_depend_on_how_the_file_orders_keys() -> None:
    assert prompt_id([{"role": "user", "content": "x"}]) == prompt_id([{"content": "x", "role": "user"}])


def test_one_id_for_two_texts_is_refused_and_a_repeated_row_is_not() -> None:
    """Two files that both count their rows from 0."""
    chats, numbers = [messages(text) for text in ("2+2", "3+3", "2+2", "Spain?")], [{"id": n} for n in (0, 1, 0, 1)]
    with pytest.raises(DataError, match="prompt 1 of row 1 is also at row 3, with another text: one id for two"):
        prompt_ids(table(prompt=chats, extra_info=numbers))
    assert prompt_ids(table(prompt=chats[:3], extra_info=numbers[:3])) == ["0", "1", "0"]


def test_ids_of_a_parquet_and_of_verls_data_set_agree(tmp_path) -> None:
    datasets = pytest.importorskip("datasets")
    rows = [{"prompt": messages(text), "extra_info": {"index": n}} for n, text in enumerate("abc")]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    class Verls:
        dataframe = datasets.load_dataset(
            "parquet", data_files=str(tmp_path / "a.parquet"), cache_dir=str(tmp_path / "cache")
        )["train"]

    assert prompt_ids(parquet_table([tmp_path / "a.parquet"])) == prompt_ids(dataset_table(Verls()))


def test_files_are_read_one_after_the_other(tmp_path) -> None:
    for name, values in (("a", [1, 2]), ("b", [3])):
        pq.write_table(pa.table({"tier": values, f"only_{name}": values}), tmp_path / f"{name}.parquet")
    both = parquet_table([tmp_path / "a.parquet", tmp_path / "b.parquet"])
    assert both.names == ["only_a", "only_b", "tier"] and both.read("tier") == [1, 2, 3]
    assert both.read("only_b") == [None, None, 3], "as in verl's data set"


def test_data_set_of_ones_own_without_columns_is_refused_by_name() -> None:
    with pytest.raises(DataError, match="NoFrame has no `dataframe`"):
        dataset_table(type("NoFrame", (), {})())


# ---- tiers --------------------------------------------------------------------------------------------------------


def test_numbers_sort_ascending_and_names_follow_the_list() -> None:
    assert tiers_of(table(tier=[30, 10, 20, 10]), "tier", None).tolist() == [2, 0, 1, 0]
    order = ["cn_contest", "aops_forum", "olympiads"]
    assert tiers_of(table(source=["olympiads", "cn_contest"]), "source", order).tolist() == [2, 0]


def test_tier_inside_a_struct() -> None:
    assert tiers_of(table(extra_info=[{"tier": 1}, {"tier": 0}]), "extra_info.tier", None).tolist() == [1, 0]


def test_missing_tier_column_lists_the_columns() -> None:
    with pytest.raises(DataError, match=r"s2l.curriculum.tier_column=tier: .* no column tier. Columns: level, prompt"):
        tiers_of(table(prompt=[1], level=[1]), "tier", None)


def test_missing_field_names_the_first_row() -> None:
    with pytest.raises(DataError, match="1 of 2 rows have no tier in extra_info; the first is row 1"):
        values_at(table(extra_info=[{"tier": 1}, {}]), "extra_info.tier", "key")


def test_unknown_tiers_are_listed() -> None:
    with pytest.raises(DataError, match="2 of 3 prompts have a tier .* does not list: 'hard', 'odd'. Listed: easy"):
        tiers_of(table(tier=["odd", "easy", "hard"]), "tier", ["easy"])


def test_tiers_of_mixed_kinds_are_listed_and_not_a_traceback() -> None:
    with pytest.raises(DataError, match="1 of 2 prompts"):
        tiers_of(table(tier=["easy", ["hard"]]), "tier", ["easy"])


@pytest.mark.parametrize("bad", ["easy", None, True, float("nan")])
def test_tiers_that_are_no_numbers_need_an_order(bad: object) -> None:
    with pytest.raises(DataError, match=f"1 of 2 prompts have a tier that is no number .{bad!r}.*tier_order"):
        tiers_of(table(tier=[1, bad]), "tier", None)


# ---- warm start ---------------------------------------------------------------------------------------------------


def test_rates_are_read_from_json_lines_and_parquet(tmp_path, jsonl) -> None:
    rows = [{"prompt_id": "a", "pass_rate": 0.25, "n": 8}, {"prompt_id": "b", "pass_rate": 1}]
    pq.write_table(pa.table({"prompt_id": ["a", "b"], "pass_rate": [0.25, 1.0]}), tmp_path / "r.parquet")
    expected = {"a": 0.25, "b": 1.0}
    assert read_pass_rates(str(jsonl(tmp_path / "r.jsonl", rows))) == expected
    assert read_pass_rates(str(tmp_path / "r.parquet")) == expected


def test_rates_find_their_prompts_and_the_others_keep_the_default() -> None:
    positions, rates = match_pass_rates({"b": 0.25, "c": 1.0}, ["a", "b", "c", "b"], "file")
    assert positions.tolist() == [1, 2, 3] and rates.tolist() == [0.25, 1.0, 0.25]
    assert positions.dtype == np.int64


def test_unknown_ids_are_counted_and_the_first_three_shown() -> None:
    rates = dict.fromkeys(("z4", "z1", "a", "z3", "z2"), 0.5)
    with pytest.raises(DataError, match="4 of 5 prompt ids are not in the training data, first: z1, z2, z3. .* like a"):
        match_pass_rates(rates, ["a"], "rates.jsonl")


def test_after_verls_filters_some_ids_may_be_gone_but_not_all() -> None:
    positions, _ = match_pass_rates({"a": 0.5, "filtered": 0.5}, ["a"], "rates.jsonl", strict=False)
    assert positions.tolist() == [0]
    with pytest.raises(DataError, match="1 of 1 prompt ids"):
        match_pass_rates({"other": 0.5}, ["a"], "rates.jsonl", strict=False)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt_id": "a", "pass_rate": 1.5}], r"row 1: pass_rate=1.5 must be a number in \[0, 1\]"),
        ([{"prompt_id": "a", "pass_rate": None}], "row 1: pass_rate=None"),
        (
            [{"prompt_id": "a", "pass_rate": 1}, {"prompt_id": "a", "pass_rate": 0}],
            "row 2: prompt_id 'a' is there twice",
        ),
        ([{"id": "a", "pass_rate": 1}], "KeyError: 'prompt_id'"),
    ],
)
def test_bad_rows_are_named(tmp_path, jsonl, rows: list[dict], words: str) -> None:
    with pytest.raises(DataError, match=words):
        read_pass_rates(str(jsonl(tmp_path / "r.jsonl", rows)))


def test_missing_or_broken_file_is_named(tmp_path) -> None:
    with pytest.raises(DataError, match=r"s2l.curriculum.warm_start=.*gone.jsonl: no such file"):
        read_pass_rates(str(tmp_path / "gone.jsonl"))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match="empty.jsonl: the file has no rows"):
        read_pass_rates(str(tmp_path / "empty.jsonl"))
    (tmp_path / "torn.jsonl").write_text('{"prompt_id": "a", "pass')
    with pytest.raises(DataError, match="torn.jsonl: cannot be read as rows"):
        read_pass_rates(str(tmp_path / "torn.jsonl"))


# ---- files and sizes ----------------------------------------------------------------------------------------------


def test_digest_follows_content_and_order_not_names(tmp_path) -> None:
    for name, content in (("a", b"1"), ("b", b"2"), ("copy", b"1")):
        (tmp_path / name).write_bytes(content)
    a, b, copy = file_digests([str(tmp_path / name) for name in ("a", "b", "copy")])
    assert a == copy != b
    assert a == "6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b"
    assert file_digests(["s3://bucket/x.parquet", "openai/gsm8k"]) == ["s3://bucket/x.parquet", "openai/gsm8k"]


def test_too_few_prompts_for_a_step() -> None:
    require_enough(16, 16)
    with pytest.raises(DataError, match="15 prompts, fewer than data.train_batch_size=16"):
        require_enough(15, 16)
