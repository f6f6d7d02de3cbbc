"""A teacher's rollouts stored, a warm-up on them and on-policy distillation as one pipeline: killed with SIGKILL as it
draws, continued, read to the end. Kills in training: test_chaos.py; in every stage: test_pipeline_run.py."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from s2l_ext.store.reader import RolloutStore

TIMEOUT_S = 900
STEPS = 3
FILE = """
name: bridge
output_dir: unused
models: {{teacher: {toy}/models/medium, student: {toy}/models/small}}
splits: {{train: {toy}/train.parquet, val: {toy}/val.parquet}}
overrides: [{overrides}]
stages:
  - {{name: draw, kind: explore, inputs: {{model: teacher, data: val}},
     options: {{n: 4, temperature: 1.0, args: [--top-p, "1", --max-tokens, "64"]}}}}
  - {{name: warm_up, kind: train, recipe: sparse_to_dense/stages/warm_up_offline,
     inputs: {{model: student, teacher: teacher, store: draw, data: val, val: val}}}}
  - {{name: opd, kind: train, recipe: sparse_to_dense/stages/opd,
     inputs: {{model: warm_up, teacher: teacher, data: train, val: val}}}}
  - {{name: table, kind: evaluate, inputs: {{models: [student, warm_up, opd], data: val}},
     options: {{n: 1, temperature: 0.0, args: [--engine, transformers, --max-tokens, "32", --limit, "32"]}}}}
"""


LORA = "actor_rollout_ref.model.lora_rank=8"
COMMON = (
    f"trainer.total_training_steps={STEPS}",
    "trainer.save_freq=1",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=400",
)
LAUNCHES = [
    {
        "fixture": "pipeline",
        "recipe": "sparse_to_dense/stages/opd",
        "overrides": COMMON,
        "shown_by": "test_distillation_trains_on_the_students_rows_with_the_reverse_kl",
    },
    {
        "fixture": "adapted",
        "recipe": "sparse_to_dense/stages/opd",
        "overrides": (*COMMON, LORA),
        "shown_by": "test_an_adapter_is_distilled_and_sampled_from",
    },
]


class Pipeline:
    def __init__(self, toy: Path, folder: Path, overrides: tuple[str, ...]) -> None:
        self.out, self.file, self.log = folder / "out", folder / "bridge.yaml", folder / "log.txt"
        self.drawn_before_the_kill = 0
        self.file.write_text(FILE.format(toy=toy, overrides=", ".join(f'"{text}"' for text in overrides)))

    def start(self) -> subprocess.Popen:
        words = [sys.executable, "-m", "s2l_ext.cli", "pipeline", str(self.file), "--out", str(self.out)]
        with open(self.log, "a") as log:
            return subprocess.Popen(words, stdout=log, stderr=log, env=os.environ)

    def kill_9_in_draw(self) -> int:
        """SIGKILL once some responses are kept; returns how many."""
        journal = self.out / "stages" / "draw" / "run" / "journal.jsonl"
        self.kill_9_when(lambda: journal.exists() and len(journal.read_bytes().splitlines()) > 40)
        return len(journal.read_bytes().splitlines()) - 2  # its header, and a line that the kill may have cut

    def kill_9_when(self, reached: Callable[[], bool]) -> None:
        """SIGKILL the pipeline alone; its children must end by themselves."""
        process, deadline = self.start(), time.monotonic() + TIMEOUT_S
        while not reached():
            assert process.poll() is None and time.monotonic() < deadline, self.said()
            time.sleep(0.2)
        children = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGKILL)
        process.wait(60)
        _gone, alive = psutil.wait_procs(children, timeout=60)
        for child in alive:
            child.kill()
        assert not [child for child in alive if "s2l_ext.cli train" in " ".join(child.cmdline() or [])]

    def finish(self) -> None:
        assert self.start().wait(TIMEOUT_S) == 0, self.said()

    def said(self) -> str:
        logs = [self.log, *self.out.glob("stages/*/log.txt")]
        return "\n".join(f"== {log}\n{log.read_text(errors='replace')[-3000:]}" for log in logs if log.exists())

    def steps(self, stage: str) -> list[tuple[int, dict]]:
        lines = (self.out / "stages" / stage / "run" / "metrics.jsonl").read_text().splitlines()
        found = [(line["step"], line["data"]) for line in map(json.loads, lines)]
        return [(step, data) for step, data in found if "training/global_step" in data]


@pytest.fixture(scope="module")
def pipeline(toy_dir: Path, tmp_path_factory: pytest.TempPathFactory, small_run: tuple[str, ...]) -> Pipeline:
    pipeline = Pipeline(toy_dir, tmp_path_factory.mktemp("pipeline"), (*small_run, *COMMON))
    pipeline.drawn_before_the_kill = pipeline.kill_9_in_draw()
    pipeline.finish()
    return pipeline


def test_a_kill_lost_no_stored_response_and_doubled_none(pipeline: Pipeline) -> None:
    store = RolloutStore(pipeline.out / "stages" / "draw" / "run")
    assert store.complete and set(store.counts().values()) == {4} and len(store.counts()) == 256
    before = re.search(r"(\d+) were there before", (pipeline.out / "stages" / "draw" / "log.txt").read_text())
    assert before and int(before[1]) >= pipeline.drawn_before_the_kill > 0


def test_every_step_is_there_once(pipeline: Pipeline) -> None:
    for stage in ("warm_up", "opd"):
        assert [step for step, _ in pipeline.steps(stage)] == list(range(1, STEPS + 1))


def test_warm_up_trains_on_the_teachers_rows_with_the_forward_kl(pipeline: Pipeline) -> None:
    for _, data in pipeline.steps("warm_up"):
        assert data["s2l/source/learner/rows"] == 0 and data["s2l/source/explorer/rows"] == 16
        assert data["s2l/distill/value"] == pytest.approx(data["s2l/distill/forward_kl"], rel=1e-6)
        assert data["actor/loss"] == pytest.approx(data["s2l/distill/forward_kl"], rel=1e-4)
        assert data["s2l/distill/forward_kl"] > 0 and data["actor/grad_norm"] > 0


def test_distillation_trains_on_the_students_rows_with_the_reverse_kl(pipeline: Pipeline) -> None:
    for _, data in pipeline.steps("opd"):
        assert "s2l/source/explorer/rows" not in data
        assert data["actor/loss"] == pytest.approx(data["s2l/distill/reverse_kl"], rel=1e-4)
        assert data["s2l/distill/reverse_kl"] > 0 and data["actor/grad_norm"] > 0


def test_the_student_is_who_samples_in_distillation(pipeline: Pipeline) -> None:
    """On its own samples a model's mean log-probability is minus its entropy, within sampling error."""
    for _, data in pipeline.steps("opd"):
        error = abs(data["s2l/distill/student_log_prob"] + data["s2l/distill/student_entropy"])
        assert error < 5 / math.sqrt(data["s2l/distill/tokens"])


def test_models_are_handed_on_and_load(pipeline: Pipeline) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    manifest = json.loads((pipeline.out / "manifest.json").read_text())
    weights = {}
    for stage in ("warm_up", "opd"):
        folder = pipeline.out / "models" / stage
        model = AutoModelForCausalLM.from_pretrained(folder)
        assert str(model.dtype) == "torch.float32"
        weights[stage] = model.state_dict()
        assert AutoTokenizer.from_pretrained(folder).chat_template
        assert manifest["stages"][stage]["status"] == "done"
    name = "model.layers.0.self_attn.q_proj.weight"
    assert not weights["warm_up"][name].equal(weights["opd"][name])
    config = (pipeline.out / "stages" / "opd" / "run" / "s2l_config.yaml").read_text()
    assert f"path: {pipeline.out / 'models' / 'warm_up'}" in config


def test_the_table_has_every_model(pipeline: Pipeline) -> None:
    rows = {row["stage"]: row for row in json.loads((pipeline.out / "table.json").read_text())}
    assert set(rows) == {"student", "draw", "warm_up", "opd"}
    assert all(0 < rows[name]["accuracy"]["table"]["accuracy"] <= 1 for name in ("student", "warm_up", "opd"))
    assert all(rows[stage]["tokens"] > 0 and rows[stage]["flops"] > 0 for stage in ("draw", "warm_up", "opd"))


def test_a_second_call_does_nothing(pipeline: Pipeline) -> None:
    before = (pipeline.out / "manifest.json").read_bytes()
    pipeline.finish()
    assert (pipeline.out / "manifest.json").read_bytes() == before


@pytest.fixture(scope="module")
def adapted(launch, small_run: tuple[str, ...], toy_dir: Path):
    teacher = f"s2l.distill.teacher_path={toy_dir}/models/medium"
    return launch("sparse_to_dense/stages/opd", *small_run, *COMMON, LORA, teacher).wait()


@pytest.mark.long
def test_an_adapter_is_distilled_and_sampled_from(adapted) -> None:
    """The student of the loss is the student that sampled, in later steps too, where the adapter is no longer zero."""
    steps = adapted.steps()
    assert sorted(steps) == list(range(1, STEPS + 1))
    for data in steps.values():
        assert data["actor/loss"] == pytest.approx(data["s2l/distill/reverse_kl"], rel=1e-4)
        assert data["s2l/distill/reverse_kl"] > 0 and data["actor/grad_norm"] > 0
        error = abs(data["s2l/distill/student_log_prob"] + data["s2l/distill/student_entropy"])
        assert error < 5 / math.sqrt(data["s2l/distill/tokens"])
    meta = json.loads((adapted.folder / f"global_step_{STEPS}" / "actor" / "lora_train_meta.json").read_text())
    assert meta["r"] == 8
