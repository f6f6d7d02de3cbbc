"""``s2l data sums``: worked traces, disjoint splits, the same rows for the same seed."""

import pyarrow.parquet as pq
import pytest

from s2l_ext.data import sums
from s2l_ext.errors import DataError
from s2l_ext.rewards.math import compute_score


def test_numbers_are_worked_from_left_to_right() -> None:
    assert sums.worked([27, 82], "+") == ("27 + 82 = 109. The answer is 109.", 109)
    assert sums.worked([4, 5, 3], "*-") == ("4 * 5 = 20. 20 - 3 = 17. The answer is 17.", 17)


def test_files_are_the_same_again_disjoint_and_rewarded(tmp_path) -> None:
    rows = {"train": 60, "val": 18}
    first, second = (sums.write_files(tmp_path / name, rows, 0) for name in "ab")
    read = {split: pq.read_table(path).to_pylist() for split, path in first.items()}
    assert read == {split: pq.read_table(path).to_pylist() for split, path in second.items()}
    assert {split: len(found) for split, found in read.items()} == rows
    texts = {split: {row["prompt"][0]["content"] for row in found} for split, found in read.items()}
    assert len(texts["train"]) == 60 and len(texts["val"]) == 18 and not texts["train"] & texts["val"]
    assert {row["tier"] for row in read["val"]} == set(sums.KINDS)
    for row in read["train"]:
        trace, gold = row["extra_info"]["trace"], row["reward_model"]["ground_truth"]
        assert compute_score("sums", trace, gold, extraction="last_number")["acc"] == 1.0


def test_another_seed_draws_other_problems() -> None:
    assert sums.sample("train", 12, 0) != sums.sample("train", 12, 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "said"), [(0, "--val 0 must be at least 1"), (10**5, "different problems were found")]
)
def test_a_number_of_problems_that_cannot_be(tmp_path, monkeypatch, count, said) -> None:
    monkeypatch.setattr(sums, "MAX_DRAWS_PER_PROBLEM", 1)
    with pytest.raises(DataError, match=said):
        sums.write_files(tmp_path / "out", {"val": count}, 0)
    assert not (tmp_path / "out").exists()
