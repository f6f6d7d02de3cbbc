"""What every stage would refuse is refused, and said, before the first one runs; steps and costs are counted."""

from __future__ import annotations

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from omegaconf import OmegaConf

from s2l_ext import cli
from s2l_ext.errors import ConfigError, TokenizerMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.pipeline import accounting
from s2l_ext.pipeline.digests import Digests
from s2l_ext.pipeline.kinds import Place, kind_of, prepare
from s2l_ext.pipeline.manifest import Manifest
from s2l_ext.pipeline.plan import Plan
from s2l_ext.pipeline.schema import Pipeline, read_pipeline
from s2l_ext.toy.tokenizer import build_tokenizer

pytestmark = pytest.mark.slow

TOY = Path("sparse_to_dense/toy")


def toy(out: Path, *overrides: str) -> Pipeline:
    return read_pipeline(TOY, out, overrides)


def prepared(pipeline: Pipeline, name: str):
    return prepare(pipeline, pipeline.stage(name))


def plan_of(pipeline: Pipeline) -> Plan:
    return Plan(pipeline, Manifest(pipeline.out, pipeline.name), Digests(pipeline.out))


def rows(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    prompts = [
        {"prompt": [{"role": "user", "content": str(n)}], "reward_model": {"ground_truth": "1"}} for n in range(count)
    ]
    pq.write_table(pa.Table.from_pylist(prompts), path)
    return path


# ---- train stages --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "s2l.distill.los=reverse_kl",
            r"stage opd: s2l\.distill\.los: unknown key\. Did you mean 's2l\.distill\.loss'",
        ),
        ("s2l.distill.loss=foo", r"stage opd: s2l\.distill\.loss='foo' is not a choice"),
        ("actor_rollout_ref.rollout.temperature=0", r"stage opd: actor_rollout_ref\.rollout\.temperature=0 is greedy"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_at_once(tmp_path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        prepared(toy(tmp_path, f"opd.{override}"), "opd")


def test_warnings_are_shown_once_by_a_dry_run_and_by_a_start(tmp_path, capsys, monkeypatch) -> None:
    inputs = {"model": "hub_s", "teacher": "hub_t", "data": "train"}
    stage = {"name": "opd", "kind": "train", "recipe": "sparse_to_dense/stages/opd", "inputs": inputs}
    train = str(rows(tmp_path / "train.parquet", 32))
    content = {"name": "p", "models": {"hub_s": "hub/s", "hub_t": "hub/t"}, "splits": {"train": train}}
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "stages": [stage]}))
    words = ["pipeline", str(tmp_path / "p.yaml"), "--out", str(tmp_path / "out"), "opd.data.train_batch_size=16"]
    words.append(f"data.val_files={train}")
    shown = "warning: stage opd: actor_rollout_ref.actor.ppo_mini_batch_size=32 with data.train_batch_size=16"
    assert cli.main([*words, "--dry-run"]) == 0 and capsys.readouterr().out.count(shown) == 1
    assert cli.main([*words, "--dry-run", "--json"]) == 0
    assert f"warning: {json.loads(capsys.readouterr().out)['warnings'][0]}".startswith(shown)
    monkeypatch.setattr("s2l_ext.cli.pipeline.Runner.run", lambda self, only: None)
    assert cli.main(words) == 0 and capsys.readouterr().out.count(shown) == 1


@pytest.mark.parametrize("order", [["teacher", "explorer"], ["explorer", "teacher"]])
def test_an_explorer_of_its_own_is_not_overwritten_by_the_teacher(tmp_path, order: list[str]) -> None:
    models = {"student": "hub/s", "teacher": "hub/t", "explorer": "hub/e"}
    inputs = {"model": "student", **{name: f"{name}_model" for name in order}}
    stage = {"name": "warm_up", "kind": "train", "recipe": "sparse_to_dense/stages/warm_up", "inputs": inputs}
    content = {
        "name": "p",
        "models": {f"{name}_model" if name in order else name: path for name, path in models.items()},
    }
    (tmp_path / "p.yaml").write_text(json.dumps({**content, "stages": [stage]}))
    words = prepared(read_pipeline(tmp_path / "p.yaml", tmp_path / "out"), "warm_up").commands[0].words
    s2l = compose_config(words[4], words[5:]).s2l
    assert (s2l.distill.teacher_path, s2l.explorer.model_path) == ("hub/t", "hub/e")


@pytest.mark.parametrize(
    ("override", "reads"),
    [
        ("s2l.curriculum.type=gaussian", True),
        ("s2l.curriculum.type=uniform", False),
        ("s2l.distill.correct_only=true", True),
    ],
)
def test_a_distillation_stage_that_chooses_by_what_was_right_reads_labels(tmp_path, override, reads: bool) -> None:
    assert prepared(toy(tmp_path, f"opd.{override}"), "opd").labels is reads


def test_accelerators_of_a_reward_model_of_its_own_count(tmp_path) -> None:
    pool = [f"reward.reward_model.{word}" for word in ("enable=true", "enable_resource_pool=true", "nnodes=1")]
    words = [*pool, "reward.reward_model.n_gpus_per_node=3"]
    opd = prepared(toy(tmp_path, *(f"opd.{word}" for word in words)), "opd")
    assert opd.accounting["accelerators"] == 4


def test_every_attempts_steps_were_paid_for(tmp_path) -> None:
    """An attempt that left no checkpoint keeps its metrics under a number."""
    for name, seconds in (("metrics", 1.0), ("metrics.dropped", 2.0), ("metrics.1", 4.0), ("metrics.2", 8.0)):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"step": 1, "data": {"timing_s/step": seconds}}) + "\n")
    assert accounting.training_seconds(tmp_path, 2) == 30.0


@pytest.mark.parametrize("name", ["warm_up", "opd"])
def test_a_frozen_teacher_of_70b_is_held_in_half_the_memory(tmp_path, name: str) -> None:
    words = prepared(read_pipeline(Path("sparse_to_dense/llama_70b_to_8b"), tmp_path), name).commands[0].words
    assert compose_config(words[4], words[5:]).actor_rollout_ref.ref.fsdp_config.model_dtype == "bf16"


@pytest.mark.parametrize("name", ["warm_up", "opd", "teacher_sample_sft"])
def test_the_toys_teacher_is_the_model_that_is_better_than_the_student(name: str) -> None:
    cfg = compose_config(f"sparse_to_dense/stages/{name}", ["toy_dir=toy"])
    paths = {OmegaConf.select(cfg, key) for key in ("s2l.distill.teacher_path", "s2l.explorer.model_path")}
    assert paths - {None} == {"toy/models/large"}


# ---- steps counted from the data -----------------------------------------------------------------------------------

EPOCHS = ("trainer.total_training_steps=null", "trainer.total_epochs=3", "data.train_batch_size=4")


def halved(out: Path) -> Pipeline:
    """A split, and a stage that trains on its second half for some epochs."""
    inputs = {"model": "student", "data": "split/2H.parquet"}
    stages = [
        {"name": "split", "kind": "split", "inputs": {"data": "train"}},
        {"name": "rl", "kind": "train", "recipe": "grpo/toy", "inputs": inputs},
    ]
    content = {"name": "p", "models": {"student": "hub/s"}, "splits": {"train": "train.parquet"}, "stages": stages}
    (out / "p.yaml").write_text(json.dumps({**content, "overrides": list(EPOCHS)}))
    return read_pipeline(out / "p.yaml", out)


def test_a_run_counted_in_epochs_gets_four_checkpoints_of_which_two_are_kept(tmp_path) -> None:
    pipeline = halved(tmp_path)
    plan = plan_of(pipeline)
    assert plan.prepared["rl"].steps is None, "its data is not there yet"
    rows(tmp_path / "stages" / "split" / "run" / "2H.parquet", 42)
    plan.renew(pipeline.stage("split"))
    assert plan.prepared["rl"].steps == 30
    words = plan.prepared["rl"].commands[0].words
    trainer = compose_config(words[4], words[5:]).trainer
    assert (trainer.save_freq, trainer.max_actor_ckpt_to_keep) == (7, 2)
    assert plan_of(pipeline).prepared["rl"] == plan.prepared["rl"], "the next call finds the same"


def test_a_recipe_that_says_how_many_checkpoints_it_keeps_is_left_alone(tmp_path) -> None:
    words = prepared(toy(tmp_path, "trainer.max_actor_ckpt_to_keep=5", "trainer.save_freq=3"), "opd").commands[0].words
    trainer = compose_config(words[4], words[5:]).trainer
    assert (trainer.save_freq, trainer.max_actor_ckpt_to_keep) == (3, 5)


def test_a_run_counted_in_epochs_is_known_to_be_finished(tmp_path) -> None:
    pipeline = halved(tmp_path)
    rows(tmp_path / "stages" / "split" / "run" / "2H.parquet", 42)
    place = Place(pipeline, pipeline.stage("rl"))
    place.run.mkdir(parents=True)
    for step, finished in ((27, False), (30, True)):
        (place.run / "latest_checkpointed_iteration.txt").write_text(str(step))
        line = {"step": step, "data": {"training/global_step": step}}
        (place.run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
        assert kind_of(place.stage).finished(place, prepared(pipeline, "rl")) is finished


def test_data_that_is_no_parquet_is_left_to_the_check_of_labels(tmp_path) -> None:
    (tmp_path / "stages" / "split" / "run").mkdir(parents=True)
    (tmp_path / "stages" / "split" / "run" / "2H.parquet").write_text("no")
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
    content = {
        "name": "p",
        "models": {"student": str(models / "student"), "teacher": str(models / teacher)},
        "splits": {"train": str(train)},
        "overrides": [f"data.val_files={train}"],
        "stages": stages,
    }
    (models / "p.yaml").write_text(json.dumps(content))
    return plan_of(read_pipeline(models / "p.yaml", models / "out"))


def test_a_teacher_that_will_speak_other_tokens_is_refused_before_it_is_trained(models, monkeypatch) -> None:
    monkeypatch.setattr(
        "s2l_ext.pipeline.plan.ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count)
    )
    distilled(models, "same").check()
    with pytest.raises(
        TokenizerMismatch, match=r"stage opd: actor_rollout_ref\.model\.path=.*/student and s2l\.distill"
    ):
        distilled(models, "other").check()


def test_a_teacher_with_another_chat_template_is_a_warning_that_is_said_once(models, monkeypatch) -> None:
    monkeypatch.setattr(
        "s2l_ext.pipeline.plan.ProcessPoolExecutor", lambda count, mp_context: ThreadPoolExecutor(count)
    )
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


def test_tokenizers_of_models_that_a_stage_will_make_are_not_looked_at_yet(models) -> None:
    plan = plan_of(toy(models / "out"))
    for name, model in (("small", "student"), ("large", "other")):
        shutil.copytree(models / model, models / "out" / "stages" / "toy" / "run" / "models" / name)
    plan.check()
