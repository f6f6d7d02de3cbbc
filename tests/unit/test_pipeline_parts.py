"""Train stages as commands, halves of prompts, labels, tokens and FLOPs, the guardian of a command."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.launch.compose import compose_config
from s2l_ext.pipeline import accounting
from s2l_ext.pipeline.kinds import prepare, relative
from s2l_ext.pipeline.labels import Seen, check_overlaps, seen_by
from s2l_ext.pipeline.manifest import Entry, Manifest
from s2l_ext.pipeline.process import clock
from s2l_ext.pipeline.progress import latest
from s2l_ext.pipeline.schema import Pipeline, find_pipeline, read_pipeline
from s2l_ext.pipeline.split import split
from s2l_ext.pipeline.train_kind import keep_dtype

OUT = "/nowhere/out put"


@pytest.fixture(scope="module")
def toy() -> Pipeline:
    return read_pipeline(Path("sparse_to_dense/toy"), Path(OUT))


def prepared(pipeline: Pipeline, name: str):
    return prepare(pipeline, pipeline.stage(name))


# ---- train stages --------------------------------------------------------------------------------------------------


def test_the_command_of_a_train_stage_composes_to_what_was_checked(toy) -> None:
    warm_up = prepared(toy, "warm_up")
    words = warm_up.commands[0].words
    assert words[1:5] == ("-m", "s2l_ext.launch.train", "--config-name", "sparse_to_dense/stages/warm_up")
    cfg = compose_config(words[4], words[5:])
    teacher = f"{OUT}/models/teacher_rl"
    assert cfg.actor_rollout_ref.model.path == f"{OUT}/stages/toy/run/models/small"
    assert (cfg.s2l.distill.teacher_path, cfg.s2l.explorer.model_path) == (teacher, teacher)
    assert cfg.data.train_files == f"{OUT}/stages/split/run/1H.parquet"
    assert cfg.trainer.default_local_dir == f"{OUT}/stages/warm_up/run" and cfg.trainer.save_freq == 4
    checkpoint = cfg.actor_rollout_ref.actor.checkpoint
    assert "hf_model" in checkpoint.save_contents and "hf_model" not in checkpoint.load_contents
    assert warm_up.settings["data"]["train_files"] == "<out>/stages/split/run/1H.parquet"
    assert (warm_up.steps, warm_up.labels, warm_up.files) == (16, False, [])
    assert warm_up.accounting["accelerators"] == 2 and warm_up.accounting["teacher"] == teacher


def test_grpo_reads_labels_and_distillation_does_not_unless_it_selects_right_answers(toy) -> None:
    controls = read_pipeline(Path("sparse_to_dense/sft_teacher"), Path(OUT))
    assert prepared(toy, "student_rl").labels and not prepared(toy, "opd").labels
    assert prepared(controls, "teacher_rl").labels


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("opd.trainer.resume_mode=disable", "stage opd: trainer.resume_mode=disable: the pipeline sets"),
        ("opd.trainer.nothing=1", "stage opd: recipe sparse_to_dense/stages/opd: "),
    ],
)
def test_overrides_that_cannot_be(override: str, words: str) -> None:
    pipeline = read_pipeline(Path("sparse_to_dense/toy"), Path(OUT), [override])
    with pytest.raises(ConfigError, match=words):
        prepared(pipeline, "opd")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recipe: sparse_to_dense/stages/odp", "no such recipe. Did you mean 'sparse_to_dense/stages/opd'"),
        ("recipe: grpo/toy", "inputs.teacher: recipe grpo/toy has no s2l.distill nor s2l.explorer"),
        ("inputs: {world: toy}", r"inputs.world: a train stage knows .* keys: \[some.override.key\]"),
        ("inputs: {world: {from: toy, keys: [no.key]}}", "stage opd: no.key cannot be set"),
        ("options: {steps: 1}", "stage opd: options.steps: unknown key"),
    ],
)
def test_stages_that_cannot_be(tmp_path, change: str, words: str) -> None:
    base = find_pipeline(Path("sparse_to_dense/toy")).resolve()
    (tmp_path / "p.yaml").write_text(f"base: {base}\nname: p\noutput_dir: out\nchange:\n  opd:\n    {change}\n")
    with pytest.raises(ConfigError, match=words):
        prepared(read_pipeline(tmp_path / "p.yaml"), "opd")


@pytest.mark.parametrize("options", ["{steps: 1}", "{names: [a, a]}"])
def test_options_of_a_split(tmp_path, options: str) -> None:
    text = f"{{name: p, output_dir: o, splits: {{d: x.parquet}}, stages: [{{name: s, kind: split, options: {options}"
    (tmp_path / "p.yaml").write_text(f"{text}, inputs: {{data: d}}}}]}}")
    with pytest.raises(ConfigError, match=r"stage s: options\.(steps: unknown|names=.* two different)"):
        prepared(read_pipeline(tmp_path / "p.yaml"), "s")


def test_a_folder_whose_name_begins_like_the_output_folder_is_another(tmp_path) -> None:
    """Its files belong into the fingerprint, under their own path."""
    outside = f"{tmp_path}/out_data/train.parquet"
    content = {
        "name": "p",
        "output_dir": str(tmp_path / "out"),
        "splits": {"train": outside},
        "models": {"student": "hub/student"},
        "stages": [
            {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "student", "data": "train"}}
        ],
    }
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    rl = prepared(read_pipeline(tmp_path / "p.yaml"), "rl")
    assert outside in rl.files and rl.settings["data"]["train_files"] == outside
    assert rl.settings["trainer"]["default_local_dir"] == "<out>/stages/rl/run"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/x/out", "<out>"),
        ("/x/out/a /x/out", "<out>/a <out>"),
        ('["/x/out", "/x/out_b/a", "/x/out.b"]', '["<out>", "/x/out_b/a", "/x/out.b"]'),
    ],
)
def test_paths_below_the_output_folder_are_said_without_it(text: str, expected: str) -> None:
    assert relative(Pipeline("p", Path("/x/out"), (), {}, {}, (), False), text) == expected


# ---- halves and labels ---------------------------------------------------------------------------------------------


def parquet(path: Path, names: list[str], labels: list[str | None] | None = None) -> Path:
    rows = [{"prompt": [{"role": "user", "content": name}]} for name in names]
    for row, label in zip(rows, labels or ["1"] * len(rows), strict=True):
        row["reward_model"] = {"ground_truth": label, "style": "rule"}
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def test_halves_share_no_prompt_keep_every_row_and_hang_on_the_seed(tmp_path) -> None:
    data = parquet(tmp_path / "all.parquet", [str(number % 9) for number in range(20)])
    halves = split(data, tmp_path / "a", 1, ["1H", "2H"])
    again, other = (split(data, tmp_path / name, seed, ["1H", "2H"]) for name, seed in (("b", 1), ("c", 2)))
    first, second = (seen_by("s", True, [path]) for path in halves)
    assert (len(first.ids), len(second.ids)) == (5, 4) and not first.ids & second.ids
    assert sum(pq.read_metadata(path).num_rows for path in halves) == 20
    assert [path.read_bytes() for path in halves] == [path.read_bytes() for path in again]
    assert seen_by("s", True, [other[0]]).ids != first.ids


def test_what_cannot_be_halved(tmp_path) -> None:
    (tmp_path / "no.parquet").write_text("no")
    for path, words in (
        (parquet(tmp_path / "one.parquet", ["a", "a"]), "1 prompts cannot be halved"),
        (tmp_path / "no.parquet", "not a parquet file"),
        (tmp_path / "missing.parquet", "no such file"),
    ):
        with pytest.raises(DataError, match=words):
            split(path, tmp_path / "out", 1, ["1H", "2H"])


def test_rows_without_labels_are_refused_only_where_labels_are_read(tmp_path) -> None:
    path = parquet(tmp_path / "x.parquet", ["a", "b", "c"], ["1", None, None])
    with pytest.raises(
        DataError, match=r"stage rl: .*x\.parquet: 2 of 3 rows have no reward_model.ground_truth.*row 1"
    ):
        seen_by("rl", True, [path])
    assert seen_by("opd", False, [path]).to_dict()["prompts"] == 3


@given(st.lists(st.tuples(st.booleans(), st.frozensets(st.sampled_from("abcdef"))), max_size=4))
def test_only_label_users_that_share_prompts_are_refused(groups) -> None:
    seen = [Seen(f"s{number}", used, ids) for number, (used, ids) in enumerate(groups)]
    users = [ids for used, ids in groups if used]
    overlap = any(a & b for number, a in enumerate(users) for b in users[number + 1 :])
    check_overlaps(seen, allowed=True)
    if overlap:
        with pytest.raises(DataError, match=r"stages s\d and s\d both learn from the labels of \d prompts"):
            check_overlaps(seen, allowed=False)
    else:
        check_overlaps(seen, allowed=False)


# ---- accounting ----------------------------------------------------------------------------------------------------


def test_tokens_and_flops_by_hand(tmp_path) -> None:
    explored = {"s2l/source/explorer/tokens": 30, "s2l/source/learner/tokens": 10}
    lines = [
        (0, {"val-core/a/acc/mean@1": 0.1}),
        (1, {"training/global_step": 1, "perf/total_num_tokens": 100, "timing_s/step": 2.0, **explored}),
        (2, {"training/global_step": 2, "perf/total_num_tokens": 60, "timing_s/step": 3.0, "s2l/distill/loss": 0.5}),
        (2, {"val-core/a/acc/mean@1": 0.4, "val-core/b/acc/mean@1": 0.6, "s2l/distill/teacher_seconds": 1.0}),
    ]
    text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    (tmp_path / "metrics.jsonl").write_text(text)
    (tmp_path / "metrics.dropped.jsonl").write_text('{"step": 2, "data": {"timing_s/step": 5.0}}\n')
    models = {"model": "x/S-1M", "explorer": "x/E-2M", "teacher": "x/T-3M"}
    result = accounting.training_result(tmp_path, models)
    assert (result["steps"], result["tokens"], result["accuracy"]) == (2, 160, 0.5)
    assert result["flops"] == {
        "training": 6e6 * 160,
        "sampling": 2e6 * 85 + 4e6 * 75,  # three quarters of the first step's tokens are the explorer's
        "teacher_scoring": 6e6 * 160,
        "total": 6e6 * 160 + 2e6 * 85 + 4e6 * 75 + 6e6 * 160,
    }
    assert list(result["metrics"]) == ["s2l/distill/loss", "val-core/a/acc/mean@1", "val-core/b/acc/mean@1"]
    assert accounting.training_seconds(tmp_path, 2) == 20.0, "the repeated step was paid for twice"
    unknown = accounting.training_result(tmp_path, {"model": "x/nobody-knows"})["flops"]
    assert unknown["total"] is None and unknown["teacher_scoring"] == 0.0
    assert latest(tmp_path / "metrics.jsonl") == (2, 0.5)


def test_the_manifest_comes_back_and_a_damaged_one_is_named(tmp_path) -> None:
    manifest = Manifest(tmp_path, "p")
    manifest.put("a", Entry("done", "f", {"recipe": "r"}, {"tokens": 1}, {"attempts": 1}))
    assert Manifest(tmp_path, "p").entries == manifest.entries
    for text, words in (
        ('{"schema_version": 1, "st', "cannot be read"),
        ('{"schema_version": 9}', "schema_version is 9"),
    ):
        manifest.path.write_text(text)
        with pytest.raises(Exception, match=rf"manifest\.json.*{words}"):
            Manifest(tmp_path, "p")


def test_clock() -> None:
    assert [clock(seconds) for seconds in (12, 185, 3720)] == ["12s", "3m05s", "1h02m"]


# ---- guardian ------------------------------------------------------------------------------------------------------


def guardian(*command: str) -> subprocess.Popen:
    words = [sys.executable, "-m", "s2l_ext.pipeline.guardian", *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_exit_codes_pass_through() -> None:
    for command, code in ((("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 137)):
        assert guardian(*command).wait(20) == code


def test_a_daemon_that_hides_from_its_parent_ends_with_the_pipe() -> None:
    process = guardian("sh", "-c", "env -i setsid sh -c 'sleep 60 & echo $!; wait' & sleep 60")
    assert process.stdout is not None and process.stdin is not None
    daemon = int(process.stdout.readline())
    process.stdin.close()
    process.wait(20)
    deadline = time.monotonic() + 5
    while psutil.pid_exists(daemon) and psutil.Process(daemon).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# ---- what verl exports --------------------------------------------------------------------------------------------


def test_the_exported_model_keeps_the_dtype_it_started_from(tmp_path) -> None:
    """verl says bfloat16 of float32 weights."""
    for name, content in (("given", {"dtype": "float32"}), ("ours", {"dtype": "bfloat16", "hidden_size": 64})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    keep_dtype(tmp_path / "ours", tmp_path / "given")
    keep_dtype(tmp_path / "ours", tmp_path / "not" / "here")
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == {"dtype": "float32", "hidden_size": 64}


# ---- evaluation beside a teacher ----------------------------------------------------------------------------------


def test_models_are_compared_with_the_teachers_own_answers(tmp_path) -> None:
    """The teacher is evaluated first, and once; the others are given its samples."""
    for name in ("big", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "test.parquet").write_bytes(b"")
    inputs = {"models": ["student", "teacher"], "data": "test", "teacher": "teacher"}
    content = {
        "name": "p",
        "output_dir": str(tmp_path / "out"),
        "models": {"teacher": str(tmp_path / "big"), "student": str(tmp_path / "small")},
        "splits": {"test": str(tmp_path / "test.parquet")},
        "stages": [{"name": "table", "kind": "evaluate", "inputs": inputs}],
    }
    (tmp_path / "p.yaml").write_text(json.dumps(content))
    pipeline = read_pipeline(tmp_path / "p.yaml", None, [])
    teacher, student = (command.words for command in prepare(pipeline, pipeline.stage("table")).commands)
    assert "--divergence-to" not in teacher and teacher[teacher.index("--model") + 1] == str(tmp_path / "big")
    assert student[student.index("--divergence-to") + 1] == str(tmp_path / "big")
    samples = student[student.index("--teacher-rollouts") + 1]
    assert samples == f"{teacher[teacher.index('--out') + 1]}.samples.jsonl"
