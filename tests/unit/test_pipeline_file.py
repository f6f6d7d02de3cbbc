"""A pipeline file: what is understood, and every refusal before anything runs."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from s2l_ext import cli
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import find_file
from s2l_ext.pipeline.file import read_pipeline
from s2l_ext.pipeline.stage import Pipeline

TRAIN = {"name": "teacher_rl", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "teacher"}}
OPD = {"name": "opd", "kind": "train", "recipe": "x/opd", "inputs": {"model": "student", "teacher": "teacher_rl"}}
FILE = {
    "name": "p",
    "output_dir": "out",
    "models": {"teacher": "m/t", "student": "m/s"},
    "splits": {"train": ["a.parquet", "b.parquet"]},
    "stages": [TRAIN, OPD],
}


def write(folder: Path, name: str = "p.yaml", **changes) -> Path:
    path = folder / name
    path.write_text(yaml.safe_dump({**FILE, **changes}))
    return path


def refusal(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        read_pipeline(path, None, overrides)
    return str(refused.value)


def stage(changes: dict) -> dict:
    return {"stages": [TRAIN, {**OPD, **changes}]}


def test_a_file_is_understood(tmp_path) -> None:
    pipeline = read_pipeline(write(tmp_path), tmp_path / "out")
    assert pipeline.out == tmp_path / "out" and [stage.name for stage in pipeline.stages] == ["teacher_rl", "opd"]
    opd = pipeline.stage("opd")
    assert (opd.one("model"), opd.one("teacher")) == ("m/s", str(tmp_path / "out" / "models" / "teacher_rl"))
    assert pipeline.downstream("teacher_rl") == ["teacher_rl", "opd"] and pipeline.downstream("opd") == ["opd"]


def file_of_the_page(folder: Path) -> Path:
    page = (Path(__file__).parents[2] / "docs" / "pipeline.md").read_text()
    block = re.search(r"## The file\n```yaml\n(.*?)```", page, re.DOTALL)
    assert block is not None
    (folder / "mine.yaml").write_text(block.group(1))
    return folder / "mine.yaml"


def test_the_file_of_the_page_is_understood(tmp_path) -> None:
    pipeline = read_pipeline(file_of_the_page(tmp_path), None)
    assert [stage.name for stage in pipeline.stages] == ["halves", "teacher_rl", "table"]


@pytest.mark.slow
def test_every_stage_of_the_page_gets_its_commands(tmp_path) -> None:
    for each in read_pipeline(file_of_the_page(tmp_path), tmp_path / "out").stages:
        assert each.prepare().commands, each.name


def test_an_input_may_be_a_list(tmp_path) -> None:
    opd = read_pipeline(write(tmp_path, **stage({"inputs": {"data": ["train"]}}))).stage("opd")
    assert opd.paths("data") == ["a.parquet", "b.parquet"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"stagse": []}, "p.yaml.stagse: unknown key. Did you mean 'p.yaml.stages'?"),
        (stage({"recipes": "x"}), "p.yaml.stages[1].recipes: unknown key. Did you mean 'p.yaml.stages[1].recipe'?"),
        ({"stages": []}, "stages is empty"),
        ({"stages": [{"kind": "train"}]}, "p.yaml.stages[0].name is missing"),
        ({"stages": [TRAIN, TRAIN]}, "the name 'teacher_rl' is given twice"),
        ({"models": {"opd": "x", "teacher": "m", "student": "n"}}, "the name 'opd' is given twice"),
        (stage({"kind": "trian"}), "stage opd: kind='trian' does not exist. Did you mean 'train'?"),
        (stage({"recipe": None}), "stage opd: recipe is missing"),
        (stage({"kind": "split"}), "stage opd: a stage of kind split has no recipe"),
        (stage({"name": "a/b"}), "p.yaml.stages[1].name='a/b' becomes a folder"),
        (stage({"inputs": {"model": "teacher_lr"}}), "called 'teacher_lr'. Did you mean 'teacher_rl'?"),
        (stage({"inputs": {"model": "teacher_rl/../x"}}), "leaves the stage's folder"),
        (stage({"inputs": {"model": {"frm": "x"}}}), "p.yaml.stages[1].inputs.model[0]={'frm': 'x'} must be text"),
        (stage({"inputs": {"model": 3}}), "p.yaml.stages[1].inputs.model[0]=3 must be text"),
        (stage({"inputs": {"model": "opd"}}), "stages wait for each other: opd -> opd"),
        ({"allow_label_overlap": "yes"}, "p.yaml.allow_label_overlap='yes' has the wrong type"),
        ({"models": {"teacher": "${vars.nothing}"}}, "vars.nothing"),
        ({"leave_out": ["opd"]}, "leave_out and change refer to the stages of a base"),
        ({"base": "other.yaml"}, "stages and base exclude each other"),
    ],
)
def test_refused(tmp_path, changes: dict, words: str) -> None:
    assert words in refusal(write(tmp_path, **changes))


def test_what_is_no_pipeline_is_refused(tmp_path) -> None:
    for text, words in (("a: 1", "has no `stages:`"), ("- 1", "is a mapping"), ("a: [", "not a YAML file")):
        (tmp_path / "x.yaml").write_text(text)
        assert words in refusal(tmp_path / "x.yaml")
    assert "no such pipeline file. Did you mean 'sparse_to_dense/toy'?" in refusal(Path("sparse_to_dense/toyy"))
    assert find_file(Path("sparse_to_dense/toy"), "pipeline").name == "toy.yaml"
    for name, command, own in (("studies/smoke", "pipeline", "study"), ("sparse_to_dense/toy", "study", "pipeline")):
        with pytest.raises(ConfigError, match=rf"^{name}: this file is a {own}\. Run: s2l {own} {name}$"):
            find_file(Path(name), command)


@pytest.mark.parametrize("head", ["models", "splits", "vars"])
def test_a_name_that_the_file_does_not_have_is_refused_with_the_nearest(tmp_path, head) -> None:
    path = write(
        tmp_path, **{"models": {}, "splits": {}, head: {"small": "a"}}, stages=[{"name": "toy", "kind": "toy"}]
    )
    read_pipeline(path, overrides=[f"{head}.small=/nope"])
    message = refusal(path, f"{head}.smal=/nope")
    assert (
        message == f"{head}.smal=/nope: {head} has no 'smal', so nothing reads it. Did you mean 'small'? It has: small."
    )


def test_status_and_dry_run_exclude_each_other(tmp_path, capsys) -> None:
    with pytest.raises(SystemExit):
        cli.main(["pipeline", str(write(tmp_path)), "--dry-run", "--status"])
    assert "not allowed with argument" in capsys.readouterr().err


def test_a_stage_that_is_not_there_is_named_with_the_nearest(tmp_path, capsys) -> None:
    for option in ("--from", "--only"):
        assert cli.main(["pipeline", str(write(tmp_path)), option, "odp"]) == 2
        assert f"{option} odp: no such stage. Did you mean 'opd'?" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["/data/store", "~/store", "./store", "../store"])
def test_a_path_where_a_name_belongs_says_where_it_goes(tmp_path, path: str) -> None:
    assert refusal(write(tmp_path, **stage({"inputs": {"store": path}}))) == (
        f"stage opd: inputs.store: {path!r} is a path. Give it a name under models or splits, and write the name here."
    )


def test_base_leave_out_and_change(tmp_path) -> None:
    write(tmp_path)
    change = {"opd": {"inputs": {"teacher": None, "explorer": "teacher"}, "overrides": ["a=1"]}}
    (tmp_path / "c.yaml").write_text(
        yaml.safe_dump({"base": "p.yaml", "name": "c", "leave_out": ["teacher_rl"], "change": change})
    )
    pipeline = read_pipeline(tmp_path / "c.yaml")
    assert (pipeline.name, [stage.name for stage in pipeline.stages]) == ("c", ["opd"])
    assert set(pipeline.stage("opd").given) == {"model", "explorer"} and pipeline.stage("opd").overrides == ["a=1"]
    for text, words in (
        ("{base: p.yaml, leave_out: [3]}", "leave_out[0]=3 must be text"),
        ("{base: p.yaml, leave_out: odp}", "leave_out: odp: the base has no such stage. Did you mean 'opd'?"),
        ("{base: p.yaml, change: [opd]}", "change=['opd']: it has a mapping of settings for each stage"),
        ("{base: p.yaml, change: {opd: 3}}", "change={'opd': 3}: it has a mapping of settings"),
        ("{base: p.yaml, leave_out: [odp]}", "leave_out: odp: the base has no such stage. Did you mean 'opd'?"),
        ("{base: c2.yaml}", "base files form a cycle: c2.yaml -> c2.yaml"),
        ("{base: nowhere.yaml}", "nowhere.yaml: no such pipeline file"),
    ):
        (tmp_path / "c2.yaml").write_text(text)
        assert words in refusal(tmp_path / "c2.yaml")


def test_overrides_of_the_file_of_a_stage_and_of_all_stages(tmp_path) -> None:
    words = ["models.teacher=hub/other", "opd.trainer.total_training_steps=2", "data.seed=3"]
    pipeline = read_pipeline(write(tmp_path), None, [*words, "allow_label_overlap=true"])
    assert pipeline.models["teacher"] == "hub/other" and pipeline.allow_label_overlap
    assert pipeline.stage("opd").shared == ("data.seed=3",)
    assert pipeline.stage("opd").overrides == ["trainer.total_training_steps=2"]
    assert "seed: not an override" in refusal(write(tmp_path), "seed")


def test_an_option_of_any_stage_is_set_from_the_command_line(tmp_path) -> None:
    table = {"name": "table", "kind": "evaluate", "inputs": {"models": "teacher", "data": "train"}, "options": {"n": 2}}
    path = write(tmp_path, stages=[TRAIN, table])
    pipeline = read_pipeline(path, None, ["table.options.n=4", "table.options.args=[--limit,'8']"])
    assert pipeline.stage("table").options == {"n": 4, "args": ["--limit", "8"]}
    assert pipeline.stage("table").overrides == [] and pipeline.stage("teacher_rl").overrides == []


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("table.n=4", r"stage table: n=4: a stage of kind evaluate has no recipe .*table\.options\.n=4\."),
        ("table.temprature=0", r"stage table: temprature=0: .*\(n, temperature, args\).*Did you mean 'temperature'"),
    ],
)
def test_an_override_of_a_stage_without_recipe_is_refused(tmp_path, override: str, words: str) -> None:
    table = {"name": "table", "kind": "evaluate", "inputs": {"models": "teacher", "data": "train"}}
    assert re.search(words, refusal(write(tmp_path, stages=[TRAIN, table]), override))
    key, _, value = override.removeprefix("table.").partition("=")
    listed = write(tmp_path, stages=[TRAIN, {**table, "overrides": [f"{key}={value}"]}])
    assert re.search(words, refusal(listed))


def test_the_output_folder_is_named_after_the_pipeline_unless_given(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path)
    path.write_text(yaml.safe_dump({key: value for key, value in FILE.items() if key != "output_dir"}))
    assert read_pipeline(path).out == tmp_path / "outputs" / "p"
    assert read_pipeline(path, tmp_path / "other").out == tmp_path / "other"


# ---- order -------------------------------------------------------------------------------------------------------


def pipeline_of(folder: Path, needs: list[list[int]]) -> Pipeline:
    stages = [{"name": str(n), "kind": "toy", "inputs": {"data": list(map(str, g))}} for n, g in enumerate(needs)]
    (folder / "p.yaml").write_text(json.dumps({"name": "p", "stages": stages}))
    return read_pipeline(folder / "p.yaml")


def graphs(acyclic: bool):
    sizes = st.integers(1, 8)
    if acyclic:
        return sizes.flatmap(
            lambda n: st.tuples(*(st.lists(st.integers(0, k - 1), unique=True) if k else st.just([]) for k in range(n)))
        )
    return sizes.flatmap(lambda n: st.lists(st.lists(st.integers(0, n - 1), unique=True), min_size=n, max_size=n))


FUZZ = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.slow
@FUZZ
@given(needs=graphs(acyclic=True), random=st.randoms())
def test_stages_come_after_what_they_need(tmp_path, needs, random) -> None:
    names = list(range(len(needs)))
    random.shuffle(names)  # the file may list them in any order
    shuffled = [[names.index(need) for need in needs[name]] for name in names]
    pipeline = pipeline_of(tmp_path, shuffled)
    order = [int(stage.name) for stage in pipeline.stages]
    assert sorted(order) == list(range(len(needs)))
    for place, name in enumerate(order):
        before = order[:place]
        assert set(shuffled[name]) <= set(before)
        ready = [other for other in range(len(needs)) if other not in before and set(shuffled[other]) <= set(before)]
        assert name == min(ready), "else the order of the file"
        reached = {name}
        for other in order:
            reached |= {other} if reached.intersection(shuffled[other]) else set()
        assert pipeline.downstream(str(name)) == [str(other) for other in order if other in reached]


@pytest.mark.slow
@FUZZ
@given(needs=graphs(acyclic=False))
def test_a_cycle_is_named_and_is_one(tmp_path, needs) -> None:
    try:
        pipeline_of(tmp_path, needs)
    except ConfigError as error:
        cycle = str(error).split(": ")[1].split(". ")[0].split(" -> ")
        assert cycle[0] == cycle[-1] and len(cycle) > 1
        assert all(int(b) in needs[int(a)] for a, b in itertools.pairwise(cycle))
