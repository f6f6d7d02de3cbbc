"""What no other launch does: a session that never ends, guidance in a loss that verl corrects, the authors' code of
G2RPO-A, SFT on traces as a stage, a distilled model that is only validated, another number of workers, and a write to
some rows of the queue."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import TensorDict
from transfer_queue import KVBatchMeta

from s2l_ext.methods.guidance.behaviour_log_probs import take_guidance_for_the_learners
from s2l_ext.training.batch_fields import PREFIX_FIELD
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.long

PROMPTS, GROUP, GUIDED = 4, 12, 2
LIMIT_S = 60
LOOP = "- {name: toy_endless, _target_: endless_loop.EndlessAgentLoop}\n"
AUTHORS_CODE = (
    f"actor_rollout_ref.rollout.n={GROUP}",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "actor_rollout_ref.rollout.agent.default_agent_loop=toy_endless",
    f"s2l.rollout.session_timeout_s={LIMIT_S}",
    "algorithm.rollout_correction.rollout_is=token",
    "algorithm.rollout_correction.rollout_is_threshold=2.0",
    "trainer.total_training_steps=3",
)
SFT = (
    "data.train_batch_size=32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=32",
    "trainer.val_before_train=false",
    "trainer.test_freq=-1",
    "trainer.total_training_steps=4",
)
OPD = "sparse_to_dense/stages/opd"
DISTILLED = (
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "trainer.total_training_steps=2",
    "trainer.save_freq=2",
    "trainer.n_gpus_per_node=2",
    "ray_kwargs.ray_init.num_gpus=2",
)
VAL_ONLY = ("trainer.val_only=true", "trainer.val_before_train=true")
GREEDY = ("actor_rollout_ref.rollout.val_kwargs.do_sample=false", "actor_rollout_ref.rollout.val_kwargs.temperature=0")
LAUNCHES = [
    {
        "fixture": "authors_code",
        "recipe": "g2rpo_a/authors_code",
        "overrides": AUTHORS_CODE,
        "shown_by": "test_guidance_in_the_loss_has_ratio_one_under_verls_correction",
    },
    {
        "fixture": "sft",
        "recipe": "g2rpo_a/sft_on_traces",
        "overrides": SFT,
        "shown_by": "test_a_stage_of_sft_reads_traces_alone_and_learns_them",
    },
]

# ---- G2RPO-A as its authors' code has it, with a session that never ends ------------------------------------------


@pytest.fixture(scope="module")
def authors_code(launch, small_run, tmp_path_factory):
    loops = tmp_path_factory.mktemp("loops") / "loops.yaml"
    loops.write_text(LOOP)
    where = f"actor_rollout_ref.rollout.agent.agent_loop_config_path={loops}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent), prepend=os.pathsep)
        return launch("g2rpo_a/authors_code", *small_run, *AUTHORS_CODE, where).wait()


def test_a_session_that_never_ends_is_a_missing_row_and_the_run_goes_on(authors_code) -> None:
    missing = {step: data["s2l/learner/missing_rows"] for step, data in authors_code.steps().items()}
    assert missing == {1: 0, 2: PROMPTS, 3: 0}
    rows = {step: data["s2l/source/learner/rows"] for step, data in authors_code.steps().items()}
    assert rows == {1: PROMPTS * GROUP, 2: PROMPTS * (GROUP - 1), 3: PROMPTS * GROUP}
    assert f"took longer than s2l.rollout.session_timeout_s={LIMIT_S}" in authors_code.log


def test_guidance_in_the_loss_has_ratio_one_under_verls_correction(authors_code) -> None:
    """Placed tokens, which no sampler gave a probability, would weigh as little as the learner's own."""
    for data in authors_code.steps().values():
        assert data["s2l/guidance/guided_rows"] == PROMPTS * GUIDED
        assert data["s2l/guidance/prefix_tokens_in_loss"] == data["s2l/guidance/prefix_tokens"] > 0
        for end in ("min", "mean", "max"):
            assert data[f"rollout_corr/rollout_is_{end}"] == pytest.approx(1, abs=1e-2)
        assert data["s2l/source/learner/ppo_ratio_mean"] == pytest.approx(1, abs=1e-3)
        assert data["training/rollout_probs_diff_max"] < 1e-3


def test_the_length_changes_at_the_third_step_only(authors_code) -> None:
    steps = authors_code.steps()
    assert [steps[step]["s2l/guidance/length"] for step in (1, 2, 3)] == [44, 44, 44]
    first, second, third = (steps[step]["s2l/guidance/accuracy"] for step in (1, 2, 3))
    assert third > 0 and first + second > 0
    assert steps[3]["s2l/guidance/next_length"] == int(min(max(44 * (first + second) / 2 / third, 1), 48))
    assert steps[2]["s2l/guidance/next_length"] == 44
    assert steps[1]["actor/kl_coef"] == 0.04


# ---- SFT on traces as a stage -------------------------------------------------------------------------------------

PIPELINE = """
name: traces
output_dir: {out}
overrides: [{overrides}]
models: {{student: {toy}/models/medium, traces: {store}}}
splits: {{train: {toy}/train_tier3.parquet, val: {toy}/val_tier3.parquet}}
stages:
  - {{name: sft, kind: train, recipe: g2rpo_a/sft_on_traces,
     inputs: {{model: student, store: traces, data: train, val: val}}}}
"""


@pytest.fixture(scope="module")
def sft(toy_dir, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    data, store, out = toy_dir / "train_tier3.parquet", folder / "store", folder / "out"
    (folder / "traces.yaml").write_text(PIPELINE.format(out=out, toy=toy_dir, store=store, overrides=", ".join(SFT)))
    model = ("--model", f"{toy_dir}/models/medium", "--data", str(data), "--out", str(store))
    for words in (("data", "traces-as-store", *model), ("pipeline", str(folder / "traces.yaml"))):
        done = subprocess.run([sys.executable, "-m", "s2l_ext.cli", *words], capture_output=True, text=True)
        logs = [log.read_text(errors="replace")[-4000:] for log in out.glob("stages/*/log.txt")]
        assert done.returncode == 0, "\n".join([done.stdout, done.stderr, *logs])
    return out


def test_a_stage_of_sft_reads_traces_alone_and_learns_them(sft) -> None:
    lines = map(json.loads, (sft / "stages" / "sft" / "run" / "metrics.jsonl").read_text().splitlines())
    steps = {line["step"]: line["data"] for line in lines if "training/global_step" in line["data"]}
    assert sorted(steps) == [1, 2, 3, 4]
    for data in steps.values():
        assert data["s2l/source/explorer/rows"] == 32 and data["s2l/source/learner/rows"] == 0
        assert data["actor/loss"] == pytest.approx(data["s2l/distill/value"], rel=1e-4)
    assert steps[4]["s2l/distill/value"] < steps[1]["s2l/distill/value"]
    assert json.loads((sft / "manifest.json").read_text())["stages"]["sft"]["status"] == "done"


# ---- a distilled model by two workers: validated alone, by one worker, merged ------------------------------------


def accuracies(run) -> dict[str, float]:
    """Of the last validation, by tier."""
    scores = {name: value for name, value in run.lines()[-1]["data"].items() if name.endswith("/acc/mean@1")}
    assert len(scores) > 0
    return scores


def answers(run, step: int) -> dict[str, str]:
    """By prompt, of the validation at ``step``."""
    lines = (run.folder / "validation" / f"{step}.jsonl").read_text().splitlines()
    return {row["input"]: row["output"] for row in map(json.loads, lines)}


@pytest.fixture(scope="module")
def distilled(launch, small_run, toy_dir):
    return launch(OPD, *small_run, *DISTILLED, f"s2l.distill.teacher_path={toy_dir}/models/medium").wait()


@pytest.fixture(scope="module")
def validated(launch, small_run, distilled):
    """The teacher's folder is gone; its name, which the checkpoint knows, is the same."""
    before = distilled.steps()
    teacher = "s2l.distill.teacher_path=/no/such/folder/medium"
    run = launch(OPD, *small_run, *DISTILLED, *VAL_ONLY, *GREEDY, teacher, folder=distilled.folder).wait()
    assert run.steps() == before, "a validation has no steps"
    return run


def test_fewer_workers_are_refused_before_models_load(launch, small_run, distilled, toy_dir) -> None:
    one = (*DISTILLED, "trainer.n_gpus_per_node=1", f"s2l.distill.teacher_path={toy_dir}/models/medium")
    run = launch(OPD, *small_run, *one, folder=distilled.folder)
    assert run.process.wait(300) != 0
    assert "2 workers wrote this checkpoint, and this run has 1" in run.log
    assert "create worker group" not in run.log


def test_a_distilled_model_is_validated_alone_and_is_the_one_that_was_merged(
    launch, small_run, validated, tmp_path
) -> None:
    """As the refusal says: the weights of two workers, merged, start a new run of one."""
    actor = validated.folder / "global_step_2" / "actor"
    words = ["merge", "--backend", "fsdp", "--local_dir", str(actor), "--target_dir", str(tmp_path / "merged")]
    subprocess.run([sys.executable, "-m", "verl.model_merger", *words], check=True, capture_output=True)
    model = f"actor_rollout_ref.model.path={tmp_path / 'merged'}"
    alone = launch("grpo/toy", *small_run, *VAL_ONLY, *GREEDY, model).wait()
    assert accuracies(alone) == pytest.approx(accuracies(validated), abs=0.02)
    texts, merged = answers(validated, 2), answers(alone, 0)
    same = sum(texts[prompt] == merged[prompt] for prompt in texts)
    assert same > 0.9 * len(texts), "the student before its training says the same to 0.41 of them"


# ---- a write to some rows of the real TransferQueue ---------------------------------------------------------------


@pytest.fixture
def rows_in_a_real_queue() -> Iterator[KVBatchMeta]:
    """A guided row with two guidance tokens between two plain ones."""
    ray.init(num_cpus=4, include_dashboard=False)
    tq.init(OmegaConf.create({"backend": {"SimpleStorage": {"num_data_storage_units": 1}}}))
    sampler = {"a_0_0": [-0.75, -0.5], "a_1_0": [0.0, 0.0, -1.25, -2.0], "a_2_0": [-3.0]}
    old = {"a_0_0": [-0.5, -0.5], "a_1_0": [-4.0, -5.0, -1.5, -2.0], "a_2_0": [-3.5]}
    ones = [torch.ones(len(row), dtype=torch.int64) for row in old.values()]
    columns = {"old_log_probs": old.values(), "rollout_log_probs": sampler.values(), "response_mask": ones}
    fields = {name: [torch.as_tensor(row) for row in rows] for name, rows in columns.items()} | {"responses": ones}
    nested = {name: torch.nested.as_nested_tensor(rows, layout=torch.jagged) for name, rows in fields.items()}
    nested[PREFIX_FIELD] = torch.tensor([0, 2, 0])
    tags = [{"uid": "a", "number": number} for number in range(3)]
    tq.kv_batch_put(keys=list(old), partition_id="train", fields=TensorDict(nested, batch_size=3), tags=tags)
    yield KVBatchMeta(partition_id="train", keys=list(old), tags=tags)
    tq.close()
    ray.shutdown()


def test_a_write_to_some_keys_leaves_the_other_rows_and_all_other_columns(rows_in_a_real_queue) -> None:
    batch = rows_in_a_real_queue
    rows = StepRows(list(batch.keys), ["learner"] * 3, [0, 2, 0], None, [{}] * 3)
    metrics = take_guidance_for_the_learners(Step(1, batch, {}, {}, rows))
    keys, names = ["a_2_0", "a_1_0", "a_0_0"], ["rollout_log_probs", "old_log_probs", "response_mask"]
    rows = tq.kv_batch_get(keys=keys, partition_id="train", select_fields=names)
    found = {name: [row.tolist() for row in rows[name].unbind()] for name in names}
    assert found["rollout_log_probs"] == [[-3.0], [-4.0, -5.0, -1.25, -2.0], [-0.75, -0.5]]
    assert found["old_log_probs"] == [[-3.5], [-4.0, -5.0, -1.5, -2.0], [-0.5, -0.5]]
    assert found["response_mask"] == [[1], [1] * 4, [1] * 2]
    assert {key: tag["number"] for key, tag in tq.kv_list()["train"].items()} == {"a_0_0": 0, "a_1_0": 1, "a_2_0": 2}
    e = math.exp
    apart = [e(-0.5) - e(-0.75), 0, e(-1.25) - e(-1.5), 0, e(-3.0) - e(-3.5)]
    assert metrics["training/rollout_probs_diff_mean"] == pytest.approx(sum(apart) / 5)
