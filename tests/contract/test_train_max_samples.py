"""verl 0.9.1: which rows ``data.train_max_samples`` takes, and that tiers are those of the rows taken. The local engine
of studies takes the same."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf
from verl.utils.dataset.rl_dataset import RLHFDataset

from s2l_ext.data.prompts import dataset_table, tiers_of
from s2l_ext.studies.local.run import read_prompts
from s2l_ext.toy.tokenizer import build_tokenizer

ROWS = 12


@pytest.fixture
def drawn(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": f"{n}"}], "tier": "abc"[n % 3], "number": n} for n in range(ROWS)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")

    def make(**settings):
        config = OmegaConf.create({"filter_overlong_prompts": False, "cache_dir": str(tmp_path / "c"), **settings})
        return RLHFDataset(str(tmp_path / "t.parquet"), build_tokenizer(), config, max_samples=5)

    return make


def test_shuffled_data_gives_a_draw_that_the_seed_alone_decides(drawn):
    dataset = drawn(shuffle=True, seed=3)
    chosen = np.random.default_rng(3).choice(ROWS, size=5, replace=False).tolist()
    assert list(dataset.dataframe["number"]) == chosen and chosen != sorted(chosen)
    ranks = tiers_of(dataset_table(dataset), "tier", ["a", "b", "c"])
    assert ranks.tolist() == [n % 3 for n in chosen]


@pytest.mark.parametrize("seed", [3, 4])
def test_the_local_engine_of_studies_draws_the_same_rows(drawn, tmp_path, seed):
    verls = list(drawn(shuffle=True, seed=seed).dataframe["number"])
    assert [row["number"] for row in read_prompts(str(tmp_path / "t.parquet"), 5, seed)] == verls
    assert [row["number"] for row in read_prompts(str(tmp_path / "t.parquet"), -1, seed)] == list(range(ROWS))


def test_unshuffled_data_gives_the_first_rows(drawn):
    assert list(drawn(shuffle=False, seed=3).dataframe["number"]) == [0, 1, 2, 3, 4]
