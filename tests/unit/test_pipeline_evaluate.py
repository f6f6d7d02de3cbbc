"""Words that an evaluate stage hands to ``s2l eval`` are checked before anything runs, and decide its fingerprint."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.pipeline.digests import Digests
from s2l_ext.pipeline.kinds import prepare
from s2l_ext.pipeline.manifest import Manifest
from s2l_ext.pipeline.plan import Plan
from s2l_ext.pipeline.schema import Pipeline, read_pipeline


def table(tmp_path: Path, **options) -> Pipeline:
    stage = {"name": "table", "kind": "evaluate", "inputs": {"models": "m", "data": "d"}, "options": options}
    content = {"name": "p", "models": {"m": "hub/m"}, "splits": {"d": "d.parquet"}}
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "stages": [stage]}))
    return read_pipeline(tmp_path / "p.yaml", tmp_path / "out")


def accounting_of(pipeline: Pipeline) -> dict:
    return prepare(pipeline, pipeline.stage("table")).accounting


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 16, "temperature": 0}, "stage table: --temperature 0 with --n 16"),
        ({"args": ["--top-q", "1"]}, "stage table: options.args: unrecognized arguments: --top-q 1"),
        ({"args": ["--top-p", "2"]}, r"stage table: --temperature 1\.0, --top-p 2\.0"),
        ({"args": ["--engine", "sglang"]}, "stage table: options.args: argument --engine: invalid choice"),
        ({"args": ["--help"]}, "stage table: options.args: unrecognized arguments: --help"),
        ({"args": ["--chat-option", "x"]}, "stage table: --chat-option x: expected KEY=VALUE"),
        ({"args": ["--benchmark", "nowhere.yaml"]}, "stage table: --benchmark nowhere.yaml: neither"),
    ],
)
def test_words_that_the_evaluation_would_refuse(tmp_path, options: dict, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=words):
        accounting_of(table(tmp_path, **options))


def test_a_benchmark_and_a_reward_of_ones_own_belong_into_the_fingerprint(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    reward, benchmark = tmp_path / "mine" / "reward.py", tmp_path / "my.yaml"
    reward.write_text("raise RuntimeError('imported')")
    benchmark.write_text(json.dumps({"data_source": "d", "prompt": "{q}", "answer": "a"}))
    pipeline = table(tmp_path, args=["--benchmark", "my.yaml", "--reward", "mine.reward:score"])
    (tmp_path / "d.parquet").write_bytes(b"")
    plan = Plan(pipeline, Manifest(pipeline.out, pipeline.name), Digests(pipeline.out))
    stage = plan.pipeline.stage("table")
    before = plan.parts(stage)
    reward.write_text("# another\n")
    assert plan.parts(stage)["file reward.py"] != before["file reward.py"]
    benchmark.write_text(json.dumps({"data_source": "d", "prompt": "{q}?", "answer": "a"}))
    assert plan.parts(stage)["file my.yaml"] != before["file my.yaml"]


def test_accelerators_of_an_evaluation(tmp_path) -> None:
    assert accounting_of(table(tmp_path, args=["--tensor-parallel", "8"])) == {"accelerators": 8}


def test_llamas_are_evaluated_with_their_own_settings_on_eight_accelerators(tmp_path) -> None:
    pipeline = read_pipeline(Path("sparse_to_dense/llama_70b_to_8b"), tmp_path)
    wanted = {"--n": "16", "--temperature": "0.6", "--top-p": "0.9", "--tensor-parallel": "8"}
    for name in ("eval_math500", "eval_aime24", "eval_aime25"):
        words = prepare(pipeline, pipeline.stage(name)).commands[0].words
        assert {key: words[words.index(key) + 1] for key in wanted} == wanted
        assert "--chat-option" not in words and "--top-k" not in words, "Qwen's"


# ---- stages that store rollouts ------------------------------------------------------------------------------------


def stored_warm_up(tmp_path: Path, **options) -> Pipeline:
    draw = {"name": "draw", "kind": "explore", "inputs": {"model": "m", "data": "d"}, "options": options}
    train = {
        "name": "warm_up",
        "kind": "train",
        "recipe": "sparse_to_dense/stages/warm_up_offline",
        "inputs": {"model": "m", "teacher": "m", "store": "draw", "data": "d"},
    }
    content = {"name": "p", "models": {"m": "hub/m"}, "splits": {"d": "d.parquet"}, "stages": [draw, train]}
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    return read_pipeline(tmp_path / "p.yaml", tmp_path / "out")


def test_a_warm_up_on_rollouts_that_an_earlier_stage_stored(tmp_path) -> None:
    pipeline = stored_warm_up(tmp_path, n=8, temperature=1, args=["--top-p", "1", "--engines", "2"])
    drawn, trained = (prepare(pipeline, pipeline.stage(name)) for name in ("draw", "warm_up"))
    store = str(tmp_path / "out" / "stages" / "draw" / "run")
    (command,) = drawn.commands
    assert command.words[3:] == (
        *("explore", "--model", "hub/m", "--data", "d.parquet", "--out", store, "--n", "8", "--temperature", "1"),
        *("--top-p", "1", "--engines", "2"),
    )
    assert drawn.accounting == {"accelerators": 2, "model": "hub/m"}
    words = trained.commands[0].words
    assert f"++s2l.explorer.store={store}" in words and "++s2l.distill.teacher_path=hub/m" in words
    assert not any("explorer.model_path" in word for word in words), "the store says who sampled"
    assert trained.accounting["accelerators"] == 1


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 4, "temperature": 0}, "stage draw: --temperature 0 with --n 4"),
        ({"args": ["--engine", "x"]}, "stage draw: options.args: .*`s2l explore --help` lists the words"),
        ({"args": ["--engines", "0"]}, "stage draw: --engines 0 is too small"),
    ],
)
def test_words_that_the_exploration_would_refuse(tmp_path, options: dict, words: str) -> None:
    pipeline = stored_warm_up(tmp_path, **options)
    with pytest.raises((ConfigError, DataError), match=words):
        prepare(pipeline, pipeline.stage("draw"))


def test_a_store_counts_when_it_is_complete_and_what_it_cost_is_told(tmp_path) -> None:
    from s2l_ext.pipeline.accounting import estimate_flops
    from s2l_ext.pipeline.kinds import Place, kind_of
    from s2l_ext.store.reader import Manifest, Rollout
    from s2l_ext.store.shards import write_manifest, write_shard

    pipeline = stored_warm_up(tmp_path)
    stage = pipeline.stage("draw")
    place, kind = Place(pipeline, stage), kind_of(stage)
    prepared = prepare(pipeline, stage)
    assert not kind.finished(place, prepared)
    place.run.mkdir(parents=True)
    drawn = [Rollout("p", index, 0, [1, 2], [3, 4, 5], [0.0] * 3, False, 1.0, 1.0, "x") for index in range(4)]
    shard = write_shard(place.run, 0, [(rollout, "") for rollout in drawn])
    for complete in (False, True):
        fingerprint = {"model_name": "m", "sampling": {}}
        write_manifest(place.run, Manifest(fingerprint, {"n": 4, "prompts": 1, "problems": ""}, complete, (shard,)))
        assert kind.finished(place, prepared) is complete
    sized = dataclasses.replace(prepared, accounting={"model": "owner/Model-1B"})
    flops = 2 * 1e9 * 20
    assert kind.result(place, sized) == {"rollouts": 4, "tokens": 20, "flops": {"sampling": flops, "total": flops}}
    step = {"perf/total_num_tokens": 20, "s2l/source/explorer/tokens": 12, "s2l/source/learner/tokens": 0}
    trained = estimate_flops({1: step}, {"model": "owner/Model-1B", "explorer": None, "stored": True})
    assert trained["sampling"] == 0 and trained["total"] == 6 * 1e9 * 20, "the stage that stored them has paid"
