"""Intervals of held-out accuracy, where the number of problems comes from, and the differences of configurations."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.config.verl_settings import flattened
from s2l_ext.evaluation.intervals import mean_interval, newcombe_interval, wilson_interval
from s2l_ext.report.run import Run, names_of
from s2l_ext.report.settings import differences, value_text

TOY, OTHER = "val-core/toy/acc/mean@1", "val-core/other/acc/mean@1"


def run(folder: Path, metrics: dict[str, float], config: dict | None = None) -> Run:
    return Run("run", [(4, metrics)], [], folder, config or {})


def dump(folder: Path, right: int, of: int, **more) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"input": f"{i}{more}", "output": "", "acc": float(i < right), **more} for i in range(of)]
    with open(folder / "4.jsonl", "a") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows))


def test_the_dump_tells_how_many_problems_there_were(tmp_path):
    dump(tmp_path / "validation", 5, 10)
    assert run(tmp_path, {TOY: 0.5}).interval(TOY, 4, 0.5) == wilson_interval(0.5, 10)
    assert run(tmp_path, {TOY: 0.5}).band(TOY) == [wilson_interval(0.5, 10)]


def test_another_runs_dump_is_not_believed(tmp_path):
    dump(tmp_path / "validation", 4, 10)
    assert run(tmp_path, {TOY: 0.5}).interval(TOY, 4, 0.5) is None


def test_several_sets_need_the_source_of_each_row(tmp_path):
    both = {TOY: 0.5, OTHER: 0.25}
    dump(tmp_path / "plain" / "validation", 5, 10)
    assert run(tmp_path / "plain", both).band(TOY) is None
    for source, right, of in (("toy", 5, 10), ("other", 2, 8)):
        dump(tmp_path / "named" / "validation", right, of, data_source=source)
    named = run(tmp_path / "named", both)
    assert named.band(TOY) == [wilson_interval(0.5, 10)] and named.band(OTHER) == [wilson_interval(0.25, 8)]


def validation_file(folder: Path, **rows: int) -> dict:
    sources = [name for name, count in rows.items() for _ in range(count)]
    pq.write_table(pa.table({"data_source": sources}), folder / "val.parquet")
    return {"trainer": {"default_local_dir": "/old/run"}, "data": {"val_files": ["/old/val.parquet"]}}


def test_without_dumps_the_validation_files_are_counted(tmp_path):
    config = validation_file(tmp_path, toy=30, other=20)
    found = run(tmp_path / "run", {TOY: 0.5, OTHER: 0.1}, config)
    assert found.band(TOY) == [wilson_interval(0.5, 30)] and found.band(OTHER) == [wilson_interval(0.1, 20)]


def test_a_part_of_a_validation_file_is_counted_where_it_has_one_source(tmp_path):
    config = validation_file(tmp_path, toy=30)
    config["data"]["val_max_samples"] = 10
    assert run(tmp_path / "run", {TOY: 0.5}, config).counts == {"toy": 10}
    assert run(tmp_path / "run", {TOY: 0.5}, {"data": {"val_files": "/none.parquet"}}).counts == {}
    two = validation_file(tmp_path, toy=30, other=20)
    two["data"]["val_max_samples"] = 10
    assert run(tmp_path / "run", {TOY: 0.5}, two).counts == {}


def test_a_validation_file_that_is_no_parquet_tells_nothing(tmp_path):
    config = validation_file(tmp_path, toy=30)
    (tmp_path / "val.parquet").write_text("nonsense")
    assert run(tmp_path / "run", {TOY: 0.5}, config).counts == {}


def test_several_samples_a_problem_use_the_spread_of_the_problems():
    """0.25, 0.5, 0.75, 0.5: mean 0.5, standard error 0.10206, times 3.18245 (Student's t, three degrees)."""
    assert mean_interval([0.25, 0.5, 0.75, 0.5]) == pytest.approx((0.17519, 0.82481), abs=1e-5)
    assert mean_interval([0.5, 1.0]) == (0.0, 1.0)  # 0.75 -+ 12.706 * 0.25
    assert mean_interval([0.5] * 4) == pytest.approx((0.15004, 0.84996), abs=1e-5)  # as of 2 of 4
    assert mean_interval([0.25] * 12) == mean_interval([1.0] * 3 + [0.0] * 9)
    assert mean_interval([0.5]) is None and mean_interval([1.0]) == pytest.approx((0.20655, 1.0), abs=1e-5)


def test_newcombe_by_hand():
    """56/70 and 48/80 (Newcombe 1998, table II, method 10): 0.2, 0.0524 to 0.3339."""
    a, b = 48 / 80, 56 / 70
    assert newcombe_interval(a, wilson_interval(a, 80), b, wilson_interval(b, 70)) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )


@given(st.integers(0, 20), st.integers(0, 30))
def test_newcombe_turns_around_with_the_runs(x, y):
    a, b = x / 20, y / 30
    of_a, of_b = wilson_interval(a, 20), wilson_interval(b, 30)
    low, high = newcombe_interval(a, of_a, b, of_b)
    assert -1 <= low <= b - a <= high <= 1
    assert newcombe_interval(b, of_b, a, of_a) == pytest.approx((-high, -low))


def test_a_moved_run_finds_its_neighbours(tmp_path):
    moved = Run("run", [], [], Path("/new/deep/run"), {"trainer": {"default_local_dir": "/old/run"}})
    assert moved.located("/old/validation") == [Path("/new/deep/validation"), Path("/old/validation")]
    assert moved.located("/old/run/rollouts")[0] == Path("/new/deep/run/rollouts")
    relative = Run("run", [], [], tmp_path / "outputs/run", {"trainer": {"default_local_dir": "outputs/run"}})
    assert relative.located("data/val.parquet")[0] == tmp_path / "data/val.parquet"
    assert relative.located("/data/val.parquet") == [Path("/data/val.parquet")]
    assert Run("run", [], []).located("a") == [Path("a")]


@pytest.mark.parametrize(
    ("folders", "names"),
    [
        (["/x/a", "/x/b"], ["a", "b"]),
        (["/x/a/run", "/x/b/run"], ["a", "b"]),
        (["/x/a/demo", "/y/b/demo/run"], ["a/demo", "b/demo"]),
        (["/x/run"], ["x"]),
        (["/run"], ["run"]),
        (["/a", "/a"], ["/a", "/a"]),
    ],
)
def test_names_are_the_shortest_that_tell_runs_apart(folders, names):
    assert names_of([Path(folder) for folder in folders]) == names


def test_configurations_differ_key_by_key():
    a = {"actor": {"lr": 1e-6, "betas": [0.9, 0.99], "empty": {}}, "name": "x"}
    b = {"actor": {"lr": 2e-6, "betas": [0.9, 0.99]}, "name": "x", "seed": None}
    assert flattened(a) == {"actor.lr": 1e-6, "actor.betas": [0.9, 0.99], "actor.empty": {}, "name": "x"}
    assert differences([a, b]) == {
        "actor.empty": ["{}", "not set"],
        "actor.lr": ["1e-06", "2e-06"],
        "seed": ["not set", "null"],
    }
    assert differences([a, a, a]) == {}


def test_values_read_like_yaml():
    assert [value_text(value) for value in (True, None, [1, "a"])] == ["true", "null", "[1, a]"]
    assert value_text("x" * 500) == "x" * 160 + "…"
