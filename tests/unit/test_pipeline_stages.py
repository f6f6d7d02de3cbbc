"""Stages made ready: commands, halves of prompts, labels, tokenizers, steps, evaluation, results and what they cost.

What a later stage would refuse is refused before the first one runs."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2l_ext import cli
from s2l_ext.errors import ConfigError, DataError, TokenizerMismatch
from s2l_ext.launch.compose import compose_config, find_file
from s2l_ext.pipeline.checks import TrainPrompts, check_overlaps, read_prompts
from s2l_ext.pipeline.commands import split
from s2l_ext.pipeline.file import KINDS, read_pipeline
from s2l_ext.pipeline.plan import Entry, Manifest, Plan
from s2l_ext.pipeline.stage import Job, Pipeline, Stage
from s2l_ext.pipeline.table import clock, latest
from s2l_ext.report.ledger import Ledger
from s2l_ext.report.run import read_run
from s2l_ext.store.reader import Manifest as StoreManifest
from s2l_ext.store.reader import Rollout
from s2l_ext.store.shards import write_manifest, write_shard
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.training.checkpoint_files import keep_dtype

TOY = Path("sparse_to_dense/toy")
OUT = "/nowhere/out put"


@pytest.fixture(scope="module")
def toy() -> Pipeline:
    return read_pipeline(TOY, Path(OUT))


def changed(out: Path, *overrides: str) -> Pipeline:
    return read_pipeline(TOY, out, overrides)


def prepared(pipeline: Pipeline, name: str) -> Job:
    return pipeline.stage(name).prepare()


def written(folder: Path, *stages: dict, **content) -> Pipeline:
    (folder / "p.yaml").write_text(json.dumps({"name": "p", "stages": list(stages), **content}))
    return read_pipeline(folder / "p.yaml", folder / "out")


def composed(stage: Job):
    words = stage.commands[0].words
    return compose_config(words[5], words[6:])


def parquet(path: Path, names: list[str], labels: list[str | None] | None = None) -> Path:
    rows = [{"prompt": [{"role": "user", "content": name}]} for name in names]
    for row, label in zip(rows, labels or ["1"] * len(rows), strict=True):
        row["reward_model"] = {"ground_truth": label, "style": "rule"}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def rows(path: Path, count: int) -> Path:
    return parquet(path, [str(number) for number in range(count)])


# ---- train stages --------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_of_a_train_stage_composes_to_what_was_checked(toy) -> None:
    warm_up = prepared(toy, "warm_up")
    train = ("-m", "s2l_ext.cli", "train", "--config-name", "sparse_to_dense/stages/warm_up")
    assert warm_up.commands[0].words[1:6] == train
    cfg = composed(warm_up)
    teacher = f"{OUT}/models/teacher_rl"
    assert cfg.actor_rollout_ref.model.path == f"{OUT}/stages/toy/run/models/small"
    assert (cfg.s2l.distill.teacher_path, cfg.s2l.explorer.model_path) == (teacher, teacher)
    assert cfg.data.train_files == f"{OUT}/stages/split/run/1H.parquet"
    assert cfg.trainer.default_local_dir == f"{OUT}/stages/warm_up/run" and cfg.trainer.save_freq == 4
    checkpoint = cfg.actor_rollout_ref.actor.checkpoint
    assert "hf_model" in checkpoint.save_contents and "hf_model" not in checkpoint.load_contents
    assert warm_up.settings["data"]["train_files"] == "<out>/stages/split/run/1H.parquet"
    assert (warm_up.steps, warm_up.labels, warm_up.files) == (16, False, [])
    assert warm_up.accelerators == 2


@pytest.mark.slow
def test_grpo_reads_labels_and_distillation_does_not_unless_it_selects_right_answers(toy) -> None:
    controls = read_pipeline(Path("sparse_to_dense/sft_teacher"), Path(OUT))
    assert prepared(toy, "student_rl").labels and not prepared(toy, "opd").labels
    assert prepared(controls, "teacher_rl").labels


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("opd.trainer.resume_mode=disable", "stage opd: trainer.resume_mode=disable: the pipeline sets"),
        ("opd.trainer.nothing=1", "stage opd: recipe sparse_to_dense/stages/opd: "),
        (
            "opd.s2l.distill.los=reverse_kl",
            r"stage opd: s2l\.distill\.los: unknown key\. Did you mean 's2l\.distill\.loss'",
        ),
        ("opd.s2l.distill.loss=foo", r"stage opd: s2l\.distill\.loss='foo' is not a choice"),
        (
            "opd.actor_rollout_ref.rollout.temperature=0",
            r"stage opd: actor_rollout_ref\.rollout\.temperature=0 is greedy",
        ),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_at_once(override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepared(changed(Path(OUT), override), "opd")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("recipe: sparse_to_dense/stages/odp", "no such recipe. Did you mean 'sparse_to_dense/stages/opd'"),
        ("recipe: grpo/toy", "inputs.teacher: recipe grpo/toy has no s2l.distill nor s2l.explorer"),
        ("inputs: {world: toy}", r"inputs.world: a train stage takes .* Set another key in the stage's overrides"),
        ("options: {steps: 1}", "stage opd: options.steps: unknown key"),
    ],
)
def test_stages_that_cannot_be(tmp_path, change: str, words: str) -> None:
    base = find_file(TOY, "pipeline").resolve()
    (tmp_path / "p.yaml").write_text(f"base: {base}\nname: p\noutput_dir: out\nchange:\n  opd:\n    {change}\n")
    with pytest.raises(ConfigError, match=words):
        prepared(read_pipeline(tmp_path / "p.yaml"), "opd")


@pytest.mark.parametrize("options", ["{steps: 1}", "{names: [a, a]}"])
def test_options_of_a_split(tmp_path, options: str) -> None:
    stage = {"name": "s", "kind": "split", "options": yaml.safe_load(options), "inputs": {"data": "d"}}
    with pytest.raises(ConfigError, match=r"stage s: options\.(steps: unknown|names=.* two different)"):
        prepared(written(tmp_path, stage, splits={"d": "x.parquet"}), "s")


@pytest.mark.slow
@pytest.mark.parametrize("path", ["{}/mine.py", "file://{}/mine.py", "pkg://mine"])
def test_a_reward_of_ones_own_belongs_into_the_fingerprint_of_a_train_stage(tmp_path, monkeypatch, path: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def compute_score(**k): return 0.0\n")
    chosen = f"reward.custom_reward_function.path={path.format(tmp_path)}"
    plan = Plan(written(tmp_path, {"name": "rl", "kind": "train", "recipe": "grpo/toy", "overrides": [chosen]}))
    stage = plan.pipeline.stage("rl")
    before = plan.parts(stage)
    (tmp_path / "mine.py").write_text("def compute_score(**k): return 1.0\n")
    assert [key for key, part in plan.parts(stage).items() if part != before[key]] == ["file mine.py"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "override"),
    [
        ("grpo/toy", "actor_rollout_ref.model.path={}"),
        ("s2l_po/toy", "s2l.explorer.model_path={}"),
        ("sparse_to_dense/stages/opd", "s2l.distill.teacher_path={}"),
        ("expo/toy", "s2l.curriculum.warm_start={}/config.json"),
        ("expo/toy", "s2l.kl.rho=my_rho:rising"),
    ],
)
def test_a_model_or_file_that_a_recipe_names_counts_by_its_content(tmp_path, monkeypatch, recipe, override) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "student"
    folder.mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    files = [folder / "config.json", tmp_path / "my_rho.py"]
    for file in files:
        file.write_text("def rising(accuracy): return 1 + accuracy")
    data = [f"data.{key}_files={rows(tmp_path / 'data.parquet', 40)}" for key in ("train", "val")]
    rl = {"name": "rl", "kind": "train", "recipe": recipe, "overrides": [override.format(folder), *data]}
    plan = Plan(written(tmp_path, rl))
    stage = plan.pipeline.stage("rl")
    plan.check()
    before = plan.parts(stage)
    for file in files:
        file.write_text("def rising(accuracy): return 2 + accuracy")
    changed = [key for key, part in plan.parts(stage).items() if part != before[key]]
    assert changed in (["file student"], ["file config.json"], ["file my_rho.py"])


@pytest.mark.slow
def test_a_folder_whose_name_begins_like_the_output_folder_is_another(tmp_path) -> None:
    """Its files belong into the fingerprint, under their own path."""
    outside = f"{tmp_path}/out_data/train.parquet"
    stage = {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "student", "data": "train"}}
    rl = prepared(written(tmp_path, stage, splits={"train": outside}, models={"student": "hub/student"}), "rl")
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
    stage = Stage("s", "toy", does=KINDS["toy"], out=Path("/x/out"), shared=(), given={})
    assert stage.relative(text) == expected


@pytest.mark.slow
def test_warnings_are_shown_once_by_a_dry_run_and_by_a_start(tmp_path, capsys, monkeypatch) -> None:
    inputs = {"model": "hub_s", "teacher": "hub_t", "data": "train"}
    stage = {"name": "opd", "kind": "train", "recipe": "sparse_to_dense/stages/opd", "inputs": inputs}
    train = str(rows(tmp_path / "train.parquet", 32))
    written(tmp_path, stage, models={"hub_s": "hub/s", "hub_t": "hub/t"}, splits={"train": train})
    words = ["pipeline", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out"), "opd.data.train_batch_size=16"]
    words.append(f"data.val_files={train}")
    shown = "warning: stage opd: actor_rollout_ref.actor.ppo_mini_batch_size=32 with data.train_batch_size=16"
    assert cli.main([*words, "--dry-run"]) == 0 and capsys.readouterr().out.count(shown) == 1
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    assert f"warning: {json.loads(capsys.readouterr().out)['warnings'][0]}".startswith(shown)
    monkeypatch.setattr("s2l_ext.cli.pipeline.Runner.run", lambda self, only: None)
    assert cli.main(words) == 0 and capsys.readouterr().out.count(shown) == 1


@pytest.mark.slow
@pytest.mark.parametrize("order", [["teacher", "explorer"], ["explorer", "teacher"]])
def test_an_explorer_of_its_own_is_not_overwritten_by_the_teacher(tmp_path, order: list[str]) -> None:
    models = {"student": "hub/s", "teacher": "hub/t", "explorer": "hub/e"}
    inputs = {"model": "student", **{name: f"{name}_model" for name in order}}
    stage = {"name": "warm_up", "kind": "train", "recipe": "sparse_to_dense/stages/warm_up", "inputs": inputs}
    models = {f"{name}_model" if name in order else name: path for name, path in models.items()}
    s2l = composed(prepared(written(tmp_path, stage, models=models), "warm_up")).s2l
    assert (s2l.distill.teacher_path, s2l.explorer.model_path) == ("hub/t", "hub/e")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "reads"),
    [
        ("s2l.curriculum.type=gaussian", True),
        ("s2l.curriculum.type=uniform", False),
        ("s2l.distill.correct_only=true", True),
    ],
)
def test_a_distillation_stage_that_chooses_by_what_was_right_reads_labels(tmp_path, override, reads: bool) -> None:
    assert prepared(changed(tmp_path, f"opd.{override}"), "opd").labels is reads


@pytest.mark.slow
def test_accelerators_of_a_reward_model_of_its_own_count(tmp_path) -> None:
    pool = [f"reward.reward_model.{word}" for word in ("enable=true", "enable_resource_pool=true", "nnodes=1")]
    pool.append("reward.reward_model.rollout.name=vllm")
    words = [*pool, "reward.reward_model.n_gpus_per_node=3"]
    assert prepared(changed(tmp_path, *(f"opd.{word}" for word in words)), "opd").accelerators == 4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["warm_up", "opd"])
def test_a_frozen_teacher_of_70b_is_held_in_half_the_memory(tmp_path, name: str) -> None:
    stage = prepared(read_pipeline(Path("sparse_to_dense/llama_70b_to_8b"), tmp_path), name)
    assert composed(stage).actor_rollout_ref.ref.fsdp_config.model_dtype == "bf16"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["warm_up", "opd", "teacher_sample_sft"])
def test_the_toys_teacher_is_the_model_that_is_better_than_the_student(name: str) -> None:
    cfg = compose_config(f"sparse_to_dense/stages/{name}", ["toy_dir=toy"])
    paths = {OmegaConf.select(cfg, key) for key in ("s2l.distill.teacher_path", "s2l.explorer.model_path")}
    assert paths - {None} == {"toy/models/large"}


# ---- data by name --------------------------------------------------------------------------------------------------


def converting(folder: Path, command: str = "dapo", *args: str, data: str = "hf://org/set@train") -> Pipeline:
    options = {"command": command, "args": [*args]}
    stage = {"name": "get", "kind": "convert", "inputs": {"data": "raw"}, "options": options}
    return written(folder, stage, splits={"raw": data})


def test_a_convert_stage_is_the_command_of_s2l_data(tmp_path) -> None:
    words = prepared(converting(tmp_path, "openr1", "--rows", "10"), "get").commands[0].words[3:]
    out = str(tmp_path / "out" / "stages" / "get" / "run")
    assert words == ("data", "openr1", "--input", "hf://org/set@train", "--out", out, "--rows", "10")


@pytest.mark.parametrize(
    ("command", "args", "words"),
    [
        ("dappo", (), r"options\.command='dappo' does not exist\. Did you mean 'dapo'\? Commands: gsm8k, openr1"),
        ("dapo", ("--rows", "3"), "options.args: unrecognized arguments: --rows 3. `s2l data dapo --help`"),
        ("openr1", ("--rows", "0"), "--rows 0 must be at least 1"),
        ("jsonl", (), "the following arguments are required: --data-source"),
    ],
)
def test_what_s2l_data_would_refuse_is_refused_at_once(tmp_path, command: str, args: tuple, words: str) -> None:
    with pytest.raises((ConfigError, DataError), match=f"stage get: .*{words}"):
        prepared(converting(tmp_path, command, *args), "get")


def test_a_file_that_is_not_there_is_refused_before_anything_runs(tmp_path) -> None:
    with pytest.raises(DataError, match=r"stage get: inputs\.data: .*absent\.parquet does not exist"):
        Plan(converting(tmp_path, data="absent.parquet")).check()


@pytest.mark.slow
def test_rows_of_the_hub_become_halves(tmp_path, monkeypatch) -> None:
    """A folder of that name takes the hub's place; the stage's process reads it."""
    rows = [{"prompt": f"{number}+1=?", "answer": number + 1} for number in range(10)]
    (tmp_path / "org" / "set").mkdir(parents=True)
    (tmp_path / "org" / "set" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    for key, value in {"HF_HOME": "hf", "S2L_CACHE_DIR": "cache", "HF_HUB_OFFLINE": "1"}.items():
        monkeypatch.setenv(key, value)
    get = {"name": "get", "kind": "convert", "inputs": {"data": "raw"}}
    get["options"] = {"command": "jsonl", "args": ["--data-source", "mine"]}
    halves = {"name": "halves", "kind": "split", "inputs": {"data": "get/train.parquet"}}
    written(tmp_path, get, halves, splits={"raw": "hf://org/set@train"})
    assert cli.main(["pipeline", "p.yaml", "--out", "out"]) == 0
    assert [pq.read_metadata(f"out/stages/halves/run/{half}.parquet").num_rows for half in ("1H", "2H")] == [5, 5]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "recipe", "raw"),
    [
        ("hub/dapo", "expo/qwen3_8b", "hf://BytedTsinghua-SIA/DAPO-Math-17k@train"),
        ("hub/openr1", "g2rpo_a/qwen3_0.6b_math", "hf://open-r1/OpenR1-Math-220k:default@train"),
        ("hub/s1k", "g2rpo_a/qwen2.5_math_7b_s1k", "hf://simplescaling/s1K-1.1@train"),
    ],
)
def test_from_the_hub_to_the_evaluated_model(tmp_path, name: str, recipe: str, raw: str) -> None:
    pipeline = read_pipeline(Path(name), tmp_path, [f"vars.recipe={recipe}", "models.base=org/base"])
    jobs = {stage.name: stage.prepare() for stage in pipeline.stages}
    assert list(jobs) == ["data", "aime24", "train", "eval_aime24", "eval_aime25", "eval_math500"]
    assert raw in jobs["data"].commands[0].words
    words = jobs["train"].commands[0].words
    assert recipe in words and "actor_rollout_ref.model.path=org/base" in words
    assert f"data.train_files={tmp_path}/stages/data/run/train.parquet" in words
    assert [command.words[5] for command in jobs["eval_aime25"].commands] == ["org/base", f"{tmp_path}/models/train"]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["grpo_24gb", "expo_24gb", "g2rpo_a_24gb"])
def test_from_the_hub_to_the_evaluated_model_on_one_card(tmp_path, recipe: str) -> None:
    pipeline = read_pipeline(Path("hub/gsm8k"), tmp_path, [f"vars.recipe=one_gpu/{recipe}"])
    get, train, evaluate = (stage.prepare() for stage in pipeline.stages)
    given = ("--input", "hf://openai/gsm8k:main@train", "hf://openai/gsm8k:main@test")
    assert get.commands[0].words[5:8] == given
    made = f"{tmp_path}/stages/data/run"
    files = [f"data.train_files={made}/train.parquet", f"data.val_files={made}/test.parquet"]
    assert set(files) <= set(train.commands[0].words) and f"one_gpu/{recipe}" in train.commands[0].words
    assert len(evaluate.commands) == 2


@pytest.mark.slow
@pytest.mark.parametrize("size", ["1.7b", "8b", "14b"])
def test_all_labels_go_upstream_or_half_of_them(tmp_path, size: str) -> None:
    """arXiv 2605.12483, routes R3-full (Table 3) and R5-half (Tables 4 and 5)."""
    full = read_pipeline(Path(f"sparse_to_dense/qwen3_{size}_to_1.7b_full"), tmp_path)
    assert full.models == {"teacher": f"Qwen/Qwen3-{size.upper()}", "student": "Qwen/Qwen3-1.7B"}
    trained = [stage for stage in full.stages if stage.kind == "train"]
    assert [stage.name for stage in trained] == ["teacher_rl", "warm_up", "opd"]
    everything = f"{tmp_path}/stages/get_train/run/train.parquet"
    assert all(stage.paths("data") == [everything] for stage in trained)
    if size != "1.7b":
        half = read_pipeline(Path(f"sparse_to_dense/qwen3_{size}_to_1.7b"), tmp_path)
        halves = [Path(half.stage(name).one("data")).name for name in ("teacher_rl", "opd", "student_rl")]
        assert (half.models, halves) == (full.models, ["1H.parquet", "1H.parquet", "2H.parquet"])


# ---- steps counted from the data -----------------------------------------------------------------------------------

EPOCHS = ("trainer.total_training_steps=null", "trainer.total_epochs=3", "data.train_batch_size=4")


def halved(out: Path) -> Pipeline:
    """A split, and a stage that trains on its second half for some epochs."""
    inputs = {"model": "student", "data": "split/2H.parquet"}
    stages = [
        {"name": "split", "kind": "split", "inputs": {"data": "train"}},
        {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": inputs},
    ]
    content = {"models": {"student": "hub/s"}, "splits": {"train": "train.parquet"}, "overrides": list(EPOCHS)}
    return written(out, *stages, **content)


@pytest.mark.slow
def test_a_run_counted_in_epochs_gets_four_checkpoints_of_which_two_are_kept(tmp_path) -> None:
    pipeline = halved(tmp_path)
    plan = Plan(pipeline)
    assert plan.jobs["rl"].steps is None, "its data is not there yet"
    rows(tmp_path / "out" / "stages" / "split" / "run" / "2H.parquet", 42)
    plan.renew(pipeline.stage("split"))
    assert plan.jobs["rl"].steps == 30
    trainer = composed(plan.jobs["rl"]).trainer
    assert (trainer.save_freq, trainer.max_actor_ckpt_to_keep) == (7, 2)
    assert Plan(pipeline).jobs["rl"] == plan.jobs["rl"], "the next call finds the same"


@pytest.mark.slow
def test_a_recipe_that_says_how_many_checkpoints_it_keeps_is_left_alone(tmp_path) -> None:
    stage = prepared(changed(tmp_path, "trainer.max_actor_ckpt_to_keep=5", "trainer.save_freq=3"), "opd")
    trainer = composed(stage).trainer
    assert (trainer.save_freq, trainer.max_actor_ckpt_to_keep) == (3, 5)


@pytest.mark.slow
def test_a_run_counted_in_epochs_is_known_to_be_finished(tmp_path) -> None:
    pipeline = halved(tmp_path)
    rows(tmp_path / "out" / "stages" / "split" / "run" / "2H.parquet", 42)
    place = pipeline.stage("rl")
    place.run.mkdir(parents=True)
    job, accuracy = prepared(pipeline, "rl"), {"val-core/toy/acc/mean@1": 0.5}
    for step, validation, finished in ((27, accuracy, False), (30, {}, False), (30, accuracy, True)):
        (place.run / "latest_checkpointed_iteration.txt").write_text(str(step))
        lines = [{"step": step, "data": data} for data in ({"training/global_step": step}, validation)]
        (place.run / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        assert place.does.finished(place, job) is finished
    job.settings["trainer"]["test_freq"] = -1
    (place.run / "metrics.jsonl").write_text(json.dumps(lines[0]) + "\n")
    assert place.does.finished(place, job), "a run that never validates owes no accuracy"


def test_a_model_of_an_earlier_step_than_the_last_is_not_passed_on(tmp_path) -> None:
    stage = {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "student", "data": "d"}}
    place = written(tmp_path, stage, models={"student": "hub/s"}, splits={"d": "d.parquet"}).stage("rl")
    place.run.mkdir(parents=True)
    (place.run / "metrics.jsonl").write_text(json.dumps({"step": 16, "data": {"training/global_step": 16}}) + "\n")
    (place.run / "latest_checkpointed_iteration.txt").write_text("12")
    with pytest.raises(DataError, match="run was trained to step 16, and its last checkpoint is of step 12. Make the"):
        place.does.exported(place)
    (place.run / "latest_checkpointed_iteration.txt").write_text("16")
    assert place.does.exported(place).parts[-3:] == ("global_step_16", "actor", "huggingface")


@pytest.mark.slow
def test_data_that_is_no_parquet_is_left_to_the_check_of_labels(tmp_path) -> None:
    half = tmp_path / "out" / "stages" / "split" / "run" / "2H.parquet"
    half.parent.mkdir(parents=True)
    half.write_text("no")
    assert prepared(halved(tmp_path), "rl").steps is None


# ---- tokenizers ----------------------------------------------------------------------------------------------------


@pytest.fixture
def models(tmp_path) -> Path:
    """``same`` speaks as ``student`` does; ``other`` has another end of turn."""
    for name in ("student", "same", "other"):
        build_tokenizer().save_pretrained(tmp_path / name)
        (tmp_path / name / "config.json").write_text(json.dumps({"model_type": "qwen3"}))
        (tmp_path / name / "model.safetensors").write_bytes(b"")
    config = tmp_path / "other" / "tokenizer_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"eos_token": "<|unk|>"}))
    return tmp_path


def distilled(models: Path, teacher: str) -> Plan:
    """Teacher RL, then distillation of the student: the teacher is what the first stage will make."""
    train = rows(models / "train.parquet", 64)
    distil = {"model": "student", "teacher": "teacher_rl", "data": "train", "val": "train"}
    stages = [
        {"name": "teacher_rl", "kind": "train", "recipe": "grpo/toy", "inputs": {"model": "teacher", "data": "train"}},
        {"name": "opd", "kind": "train", "recipe": "sparse_to_dense/stages/opd", "inputs": distil},
    ]
    paths = {"student": str(models / "student"), "teacher": str(models / teacher)}
    splits, overrides = {"train": str(train)}, [f"data.val_files={train}"]
    return Plan(written(models, *stages, models=paths, splits=splits, overrides=overrides))


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    pool = "s2l_ext.pipeline.checks.ProcessPoolExecutor"
    monkeypatch.setattr(pool, lambda count, mp_context: ThreadPoolExecutor(count))


@pytest.mark.slow
def test_a_teacher_that_will_speak_other_tokens_is_refused_before_it_is_trained(models, in_this_process) -> None:
    distilled(models, "same").check()
    with pytest.raises(
        TokenizerMismatch, match=r"stage opd: actor_rollout_ref\.model\.path=.*/student and s2l\.distill"
    ):
        distilled(models, "other").check()


@pytest.mark.slow
def test_a_teacher_with_another_chat_template_is_a_warning_that_is_said_once(models, in_this_process) -> None:
    template = models / "same" / "chat_template.jinja"
    template.write_text(template.read_text() + "{# of its own #}")
    plan = distilled(models, "same")
    assert [warning for warning in plan.warnings if "chat template" in warning] == []
    plan.check()
    (warning,) = [warning for warning in plan.warnings if "chat template" in warning]
    assert warning.startswith(f"stage opd: s2l.distill.teacher_path={models / 'same'} has another chat template than ")
    assert plan.check_final(plan.decisions()) == [], "said before"


@pytest.mark.slow
def test_tokenizers_are_compared_in_a_process_that_ends_with_its_torch(models) -> None:
    with pytest.raises(TokenizerMismatch, match=r"^stage opd: .* do not share a tokenizer"):
        distilled(models, "other").check()


@pytest.mark.slow
def test_tokenizers_of_models_that_a_stage_will_make_are_not_looked_at_yet(models) -> None:
    plan = Plan(changed(models / "out"))
    for name, model in (("small", "student"), ("large", "other")):
        shutil.copytree(models / model, models / "out" / "stages" / "toy" / "run" / "models" / name)
    plan.check()


# ---- halves and labels ---------------------------------------------------------------------------------------------


def test_halves_share_no_prompt_keep_every_row_and_hang_on_the_seed(tmp_path) -> None:
    data = parquet(tmp_path / "all.parquet", [str(number % 9) for number in range(20)])
    halves = split(data, tmp_path / "a", 1, ["1H", "2H"])
    again, other = (split(data, tmp_path / name, seed, ["1H", "2H"]) for name, seed in (("b", 1), ("c", 2)))
    first, second = (read_prompts("s", True, [path]) for path in halves)
    assert (len(first.ids), len(second.ids)) == (5, 4) and not first.ids & second.ids
    assert sum(pq.read_metadata(path).num_rows for path in halves) == 20
    assert [path.read_bytes() for path in halves] == [path.read_bytes() for path in again]
    assert read_prompts("s", True, [other[0]]).ids != first.ids


def test_what_cannot_be_halved(tmp_path) -> None:
    (tmp_path / "no.parquet").write_text("no")
    for path, words in (
        (parquet(tmp_path / "one.parquet", ["a", "a"]), "1 prompts cannot be halved"),
        (tmp_path / "no.parquet", "not a readable parquet file"),
        (tmp_path / "missing.parquet", "No such file"),
    ):
        with pytest.raises(DataError, match=words):
            split(path, tmp_path / "out", 1, ["1H", "2H"])


def test_rows_without_labels_are_refused_only_where_labels_are_read(tmp_path) -> None:
    path = parquet(tmp_path / "x.parquet", ["a", "b", "c"], ["1", None, None])
    with pytest.raises(
        DataError, match=r"stage rl: .*x\.parquet: 2 of 3 rows have no reward_model.ground_truth.*row 1"
    ):
        read_prompts("rl", True, [path])
    assert read_prompts("opd", False, [path]).to_dict()["prompts"] == 3


@given(st.lists(st.tuples(st.booleans(), st.frozensets(st.sampled_from("abcdef"))), max_size=4))
def test_only_label_users_that_share_prompts_are_refused(groups) -> None:
    seen = [TrainPrompts(f"s{number}", used, ids) for number, (used, ids) in enumerate(groups)]
    users = [ids for used, ids in groups if used]
    overlap = any(a & b for number, a in enumerate(users) for b in users[number + 1 :])
    check_overlaps(seen, allowed=True)
    if overlap:
        with pytest.raises(DataError, match=r"stages s\d and s\d both learn from the labels of \d prompts"):
            check_overlaps(seen, allowed=False)
    else:
        check_overlaps(seen, allowed=False)


# ---- results and costs ---------------------------------------------------------------------------------------------


def trained(folder: Path, lines: list[tuple[int, dict]], **models: str) -> Stage:
    """A stage whose run left these metrics."""
    inputs = {"model": "m", "data": "d"}
    stage = {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": inputs}
    pipeline = written(folder, stage, models={"m": "hub/m"}, splits={"d": "d.parquet"})
    place = pipeline.stage("rl")
    place.run.mkdir(parents=True)
    text = "".join(json.dumps({"step": step, "data": data}) + "\n" for step, data in lines)
    (place.run / "metrics.jsonl").write_text(text)
    explorer = {"model_path": models.get("explorer"), "source": models.get("source", "live")}
    config = {
        "trainer": {"nnodes": 1, "n_gpus_per_node": 2},
        "actor_rollout_ref": {"model": {"path": models["learner"]}},
        "s2l": {"explorer": explorer, "distill": {"teacher_path": models.get("teacher")}},
    }
    (place.run / "s2l_config.yaml").write_text(yaml.safe_dump(config))
    return place


STEPS = [
    (0, {"val-core/a/acc/mean@1": 0.1}),
    (
        1,
        {
            "training/global_step": 1,
            "perf/total_num_tokens": 100,
            "prompt_length/mean": 10,
            "s2l/source/explorer/rows": 4,
            "s2l/source/explorer/tokens": 35,
            "timing_s/step": 2.0,
        },
    ),
    (2, {"training/global_step": 2, "perf/total_num_tokens": 60, "timing_s/step": 3.0, "s2l/distill/loss": 0.5}),
    (2, {"val-core/a/acc/mean@1": 0.4, "val-core/b/acc/mean@1": 0.6, "s2l/distill/teacher_seconds": 1.0}),
]


def result_of(stage: Stage) -> dict:
    return stage.does.result(stage)


def test_tokens_and_flops_by_hand_and_as_the_report_counts_them(tmp_path) -> None:
    place = trained(tmp_path, STEPS, learner="x/S-1M", explorer="x/E-2M", teacher="x/T-3M")
    result = result_of(place)
    assert (result["steps"], result["tokens"], result["accuracy"]) == (2, 160, 0.5)
    assert result["flops"] == {
        "training": 6e6 * 160,
        "sampling": 2e6 * 85 + 4e6 * 75,  # four prompts and 35 tokens of the first step are the explorer's
        "scoring": 6e6 * 160,
        "total": 6e6 * 160 + 2e6 * 85 + 4e6 * 75 + 6e6 * 160,
    }
    assert result["flops"]["total"] == Ledger(read_run(place.run)).totals(all_in=True).flops
    assert list(result["metrics"]) == ["s2l/distill/loss", "val-core/a/acc/mean@1", "val-core/b/acc/mean@1"]
    assert latest(place.run / "metrics.jsonl") == (2, 0.5)


def test_flops_of_a_model_whose_size_nobody_knows(tmp_path) -> None:
    flops = result_of(trained(tmp_path, STEPS[2:3], learner="x/nobody-knows"))["flops"]
    assert flops["training"] is None and flops["total"] is None


def test_rollouts_that_an_earlier_stage_stored_cost_nothing_again(tmp_path) -> None:
    place = trained(tmp_path, STEPS[1:2], learner="x/S-1M", explorer="x/E-2M", source="offline")
    assert result_of(place)["flops"] == {"sampling": 2e6 * 25, "training": 6e6 * 100, "total": 2e6 * 25 + 6e6 * 100}


def test_every_attempts_steps_were_paid_for_and_a_reward_model_of_its_own(tmp_path) -> None:
    """An attempt that left no checkpoint keeps its metrics under a number."""
    place = trained(tmp_path, [], learner="x/S-1M")
    for name, seconds in (("metrics", 1.0), ("metrics.dropped", 2.0), ("metrics.1", 4.0), ("metrics.2", 8.0)):
        line = {"step": 1, "data": {"timing_s/step": seconds}}
        (place.run / f"{name}.jsonl").write_text(json.dumps(line) + "\n")
    paid = place.does.accelerator_seconds
    assert paid(place, Job([]), 99.0) == 2 * 15.0
    lines = [{"step": step, "data": {"timing_s/step": 0.5}} for step in (9, 10, 9, 10)]
    (place.run / "metrics.dropped.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert paid(place, Job([]), 99.0) == 2 * 15.0, "2 seconds of two attempts in one file"
    held = {"learner": 2, "explorer": 1, "teacher servers": 1, "reward model": 3}
    (place.run / "plan.json").write_text(json.dumps({"accelerators": held}))
    assert paid(place, Job([]), 99.0) == (2 + 1 + 3) * 15.0
    assert Ledger(read_run(place.run)).totals(all_in=False).accelerator_seconds == 2 + 3, "the teacher is a helper"


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


# ---- what verl exports --------------------------------------------------------------------------------------------


def test_the_exported_model_keeps_the_dtype_it_started_from(tmp_path) -> None:
    """verl says bfloat16 of float32 weights."""
    for name, content in (("given", {"dtype": "float32"}), ("ours", {"dtype": "bfloat16", "hidden_size": 64})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(content))
    keep_dtype(tmp_path / "ours", tmp_path / "given")
    keep_dtype(tmp_path / "ours", tmp_path / "not" / "here")
    assert json.loads((tmp_path / "ours" / "config.json").read_text()) == {"dtype": "float32", "hidden_size": 64}


# ---- stages that sample ---------------------------------------------------------------------------------------------


def table(tmp_path: Path, **options) -> Pipeline:
    stage = {"name": "table", "kind": "evaluate", "inputs": {"models": "m", "data": "d"}, "options": options}
    return written(tmp_path, stage, models={"m": "hub/m"}, splits={"d": "d.parquet"})


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
        prepared(table(tmp_path, **options), "table")


@pytest.mark.parametrize("place", ["mine.reward:score", "mine/reward.py:score"])
def test_a_benchmark_and_a_reward_of_ones_own_belong_into_the_fingerprint(tmp_path, monkeypatch, place: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    reward, benchmark = tmp_path / "mine" / "reward.py", tmp_path / "my.yaml"
    reward.write_text("raise RuntimeError('imported')")
    benchmark.write_text(json.dumps({"data_source": "d", "prompt": "{q}", "answer": "a"}))
    pipeline = table(tmp_path, args=["--benchmark", "my.yaml", "--reward", place])
    (tmp_path / "d.parquet").write_bytes(b"")
    plan = Plan(pipeline)
    stage = plan.pipeline.stage("table")
    before = plan.parts(stage)
    reward.write_text("# another\n")
    assert plan.parts(stage)["file reward.py"] != before["file reward.py"]
    benchmark.write_text(json.dumps({"data_source": "d", "prompt": "{q}?", "answer": "a"}))
    assert plan.parts(stage)["file my.yaml"] != before["file my.yaml"]


def test_every_file_counts_though_another_has_its_name(tmp_path) -> None:
    first, second, other = files = [tmp_path / name for name in ("a/x.parquet", "b/x.parquet", "c/y.parquet")]
    for number, file in enumerate(files):
        rows(file, number + 1)
    plan = Plan(table(tmp_path))
    stage = plan.pipeline.stage("table")
    plan.jobs["table"] = Job([], files=[str(first), str(second), str(other), str(second)])
    before = plan.parts(stage)
    assert {key for key in before if key.startswith("file ")} == {f"file {first}", f"file {second}", "file y.parquet"}
    rows(first, 7)
    assert {key for key, part in plan.parts(stage).items() if part != before[key]} == {f"file {first}"}


def test_a_teacher_that_an_argument_names_counts_by_its_content(tmp_path) -> None:
    (tmp_path / "teacher").mkdir()
    job = prepared(table(tmp_path, args=["--divergence-to", str(tmp_path / "teacher")]), "table")
    assert job.files == [str(tmp_path / "teacher")]


def test_accelerators_of_an_evaluation(tmp_path) -> None:
    assert prepared(table(tmp_path, args=["--tensor-parallel", "8"]), "table").accelerators == 8


def test_llamas_are_evaluated_with_their_own_settings_on_eight_accelerators(tmp_path) -> None:
    pipeline = read_pipeline(Path("sparse_to_dense/llama_70b_to_8b"), tmp_path)
    wanted = {"--n": "16", "--temperature": "0.6", "--top-p": "0.9", "--tensor-parallel": "8"}
    for name in ("eval_math500", "eval_aime24", "eval_aime25"):
        words = prepared(pipeline, name).commands[0].words
        assert {key: words[words.index(key) + 1] for key in wanted} == wanted
        assert "--chat-option" not in words and "--top-k" not in words, "Qwen's"


def stored_warm_up(tmp_path: Path, **options) -> Pipeline:
    draw = {"name": "draw", "kind": "explore", "inputs": {"model": "m", "data": "d"}, "options": options}
    train = {
        "name": "warm_up",
        "kind": "train",
        "recipe": "sparse_to_dense/stages/warm_up_offline",
        "inputs": {"model": "m", "teacher": "m", "store": "draw", "data": "d"},
    }
    return written(tmp_path, draw, train, models={"m": "hub/m"}, splits={"d": "d.parquet"})


@pytest.mark.slow
def test_a_warm_up_on_rollouts_that_an_earlier_stage_stored(tmp_path) -> None:
    pipeline = stored_warm_up(tmp_path, n=8, temperature=1, args=["--top-p", "1", "--engines", "2"])
    drawn, warm_up = (prepared(pipeline, name) for name in ("draw", "warm_up"))
    store = str(tmp_path / "out" / "stages" / "draw" / "run")
    (command,) = drawn.commands
    assert command.words[3:] == (
        *("explore", "--model", "hub/m", "--data", "d.parquet", "--out", store, "--n", "8", "--temperature", "1"),
        *("--top-p", "1", "--engines", "2"),
    )
    assert drawn.accelerators == 2
    words = warm_up.commands[0].words
    assert f"++s2l.explorer.store={store}" in words and "++s2l.distill.teacher_path=hub/m" in words
    assert not any("explorer.model_path" in word for word in words), "the store says who sampled"
    assert warm_up.accelerators == 1


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
        prepared(pipeline, "draw")


def test_a_store_counts_when_it_is_complete_and_what_it_cost_is_told(tmp_path) -> None:
    draw = {"name": "draw", "kind": "explore", "inputs": {"model": "m", "data": "d"}}
    pipeline = written(tmp_path, draw, models={"m": "owner/Model-1B"}, splits={"d": "d.parquet"})
    place = pipeline.stage("draw")
    kind, stage = place.does, place.prepare()
    assert not kind.finished(place, stage)
    place.run.mkdir(parents=True)
    drawn = [Rollout("p", index, 0, [1, 2], [3, 4, 5], [0.0] * 3, False, 1.0, 1.0, "x") for index in range(4)]
    shard = write_shard(place.run, 0, [(rollout, "") for rollout in drawn])
    for complete in (False, True):
        request = {"n": 4, "prompts": 1, "problems": ""}
        manifest = StoreManifest({"model_name": "m", "sampling": {}}, request, complete, (shard,))
        write_manifest(place.run, manifest)
        assert kind.finished(place, stage) is complete
    flops = 2 * 1e9 * 20
    assert kind.result(place) == {"rollouts": 4, "tokens": 20, "flops": {"sampling": flops, "total": flops}}


def test_models_are_compared_with_the_teachers_own_answers(tmp_path) -> None:
    """The teacher is evaluated first, and once; the others are given its samples."""
    for name in ("big", "small"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "test.parquet").write_bytes(b"")
    inputs = {"models": ["student", "teacher"], "data": "test", "teacher": "teacher"}
    models = {"teacher": str(tmp_path / "big"), "student": str(tmp_path / "small")}
    stage = {"name": "table", "kind": "evaluate", "inputs": inputs}
    pipeline = written(tmp_path, stage, models=models, splits={"test": str(tmp_path / "test.parquet")})
    teacher, student = (command.words for command in prepared(pipeline, "table").commands)
    assert "--divergence-to" not in teacher and teacher[teacher.index("--model") + 1] == str(tmp_path / "big")
    assert student[student.index("--divergence-to") + 1] == str(tmp_path / "big")
    samples = student[student.index("--teacher-rollouts") + 1]
    assert samples == f"{teacher[teacher.index('--out') + 1]}.samples.jsonl"
