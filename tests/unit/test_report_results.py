"""Reading a run's folder and the paired comparison, against numbers worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.errors import DataError
from s2l_ext.evaluation.intervals import paired_interval, wilson_interval
from s2l_ext.report.results import paired, read_metrics, read_validations, series


def dump(folder: Path, step: int, rows: list[dict]) -> None:
    folder.mkdir(exist_ok=True)
    (folder / f"{step}.jsonl").write_text("".join(json.dumps({"step": step, **row}) + "\n" for row in rows))


def test_metrics_without_the_torn_last_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {"a": 1}}\n{"step": 2, "data": {"a": null, "b": 3}}\n{"step": 3, "da')
    lines = read_metrics(path)
    assert lines == [(1, {"a": 1}), (2, {"a": None, "b": 3})]
    assert series(lines, "a") == [(1, 1.0)]


def test_a_broken_line_in_the_middle_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "data": {}}\nnonsense\n{"step": 3, "data": {}}\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl:2"):
        read_metrics(path)


def test_missing_metrics(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_series_sorts_and_the_last_line_of_a_step_wins():
    lines = [(2, {"a": 5}), (1, {"a": 1}), (2, {"a": 7}), (3, {"b": 1})]
    assert series(lines, "a") == [(1, 1.0), (2, 7.0)]


def test_dumps_are_ordered_by_number_and_repeats_averaged(tmp_path):
    dump(tmp_path, 4, [{"input": "p", "acc": 1.0, "output": "y", "gts": "1"}, {"input": "q", "acc": 1, "output": "z"}])
    dump(tmp_path, 16, [{"input": "p", "acc": None, "score": 0.5}, {"input": "q", "score": 0.0}])
    dump(tmp_path, 0, [{"input": "p", "acc": 1.0}, {"input": "p", "acc": 0.0}, {"input": "q", "acc": True}])
    (tmp_path / "notes.jsonl").write_text("not a dump")
    dumps = read_validations([tmp_path / "none", tmp_path])
    assert list(dumps) == [0, 4, 16]
    assert dumps[0]["accuracy"].to_dict() == {"p": 0.5, "q": 1.0}
    assert dumps[16]["accuracy"].to_dict() == {"p": 0.5, "q": 0.0}
    assert dumps[4].loc["p"].tolist() == [1.0, "y", "1", None]


def test_bad_dump_row_is_named(tmp_path):
    dump(tmp_path, 0, [{"input": "p", "acc": 1.0}])
    dump(tmp_path, 8, [{"input": "p", "acc": 1.0}, {"acc": 1.0}, {"input": "q", "acc": 1.0}])
    with pytest.raises(DataError, match=r"8\.jsonl:2.*input"):
        read_validations([tmp_path / "none", tmp_path])


def validation(values: dict[str, float]) -> pd.DataFrame:
    return pd.DataFrame({"accuracy": values}).sort_index()


def test_pairing_is_by_problem_not_by_order():
    names = [f"p{i}" for i in range(40)]
    before = validation({name: float(i % 2) for i, name in enumerate(names)})
    after = validation({name: float(i % 2) for i, name in reversed(list(enumerate(names)))})
    result = paired(before, after)
    assert (result.value, result.ci95, result.verdict) == (0.0, (0.0, 0.0), "not clear")


def test_other_problems_do_not_pair():
    assert paired(validation({"a": 0.0, "b": 0.0}), validation({"a": 0.0, "c": 0.0})) is None


def test_five_problems_that_all_improve_are_no_clear_gain():
    """By chance 2 in 32 (sign test); six, 2 in 64."""
    for count, said in ((5, "too few"), (6, "clear")):
        names = [f"p{i}" for i in range(count)]
        found = paired(validation(dict.fromkeys(names, 0.0)), validation(dict.fromkeys(names, 1.0)))
        assert found.verdict == said


def test_interval_agrees_with_the_normal_approximation():
    differences = np.array([1.0] * 60 + [0.0] * 30 + [-1.0] * 10)
    low, high = paired_interval(differences)
    half = 1.96 * differences.std() / 10
    assert low == pytest.approx(0.5 - half, abs=0.02)
    assert high == pytest.approx(0.5 + half, abs=0.02)
    assert paired_interval(differences) == (low, high)


@given(st.lists(st.sampled_from([-1.0, 0.0, 1.0]), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_interval_lies_within_the_data_and_holds_its_order(values):
    differences = np.array(values)
    low, high = paired_interval(differences, resamples=200)
    assert differences.min() <= low <= high <= differences.max()


def test_wilson_by_hand():
    low, high = wilson_interval(0.5, 100)
    assert (low, high) == pytest.approx((0.40383, 0.59617), abs=1e-5)
    assert wilson_interval(1.0, 10) == pytest.approx((0.72247, 1.0), abs=1e-5)
    assert wilson_interval(0.0, 10) == pytest.approx((0.0, 0.27753), abs=1e-5)
