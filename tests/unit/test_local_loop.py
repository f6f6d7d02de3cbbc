"""The local loop on tiny random models: every method's part of a step, and a run's folder."""

import json
from pathlib import Path

import pytest
import torch

from s2l_ext.launch.compose import compose_config
from s2l_ext.report.ledger import Ledger
from s2l_ext.report.results import read_validations
from s2l_ext.report.run import read_run
from s2l_ext.studies.local.loop import LocalLoop
from s2l_ext.studies.local.run import read_prompts, run_local
from s2l_ext.toy.models import ModelSize, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.toy.world import write_files

pytestmark = pytest.mark.slow

SMALL = (
    "data.train_batch_size=2",
    "data.max_response_length=20",
    "data.val_max_samples=4",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.actor.ppo_mini_batch_size=2",
    "trainer.total_training_steps=2",
    "trainer.test_freq=1",
)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("world")
    write_files(root, 0, {"train": 8, "val": 4, "test": 4})
    for number, name in enumerate(("small", "medium", "large")):
        build_model(ModelSize(32, 1), number).save_pretrained(root / "models" / name)
        build_tokenizer().save_pretrained(root / "models" / name)
    return root


@pytest.fixture
def loop(world):
    def make(recipe: str, *overrides: str) -> LocalLoop:
        cfg = compose_config(recipe, [f"toy_dir={world}", *SMALL, *overrides])
        return LocalLoop(cfg, read_prompts(cfg.data.train_files, -1, 0))

    return make


def test_the_explorers_rows_come_first_then_guided_ones(loop) -> None:
    guidance = "s2l.guidance={alpha: 0.5, min_continuation: 5, length: {initial: 9, max_length: 9}}"
    made = loop("s2l_po/toy", "s2l.explorer.mix_steps=3", guidance)
    rows, metrics = made.step(2)  # half of the group is the explorer's
    assert rows.source_B == (["explorer"] * 2 + ["learner"] * 2) * 2
    assert [length > 0 for length in rows.guidance_B] == [False, False, True, True] * 2
    assert max(rows.guidance_B) == 9 and all(len(response) <= 20 for response in rows.responses)
    assert metrics["s2l/explorer/rollouts_per_group"] == 2 and metrics["s2l/guidance/length"] == 9
    ids = made.tokenizer.decode(rows.responses[2][: rows.guidance_B[2]])
    assert any(ids and row["extra_info"]["trace"].startswith(ids) for row in made.prompts)


def test_log_probabilities_of_the_sampler_are_those_of_its_distribution(loop) -> None:
    """At temperature 1 and top-p 1 they are the model's own."""
    made = loop("grpo/toy")
    rows = made.sample(made.prompts[:2], 1)
    with torch.no_grad():
        found = made.log_probs(made.learner, made.pack(rows))
    for row, own in zip(rows.sampler_log_probs, found, strict=True):
        assert row == pytest.approx(own[: len(row)].tolist(), abs=1e-4)


def test_importance_weights_stand_on_explorer_tokens_only_and_are_capped(loop) -> None:
    made = loop(
        "s2l_po/toy", "s2l.explorer.mix_steps=3", "s2l.explorer.correction=truncated_is", "s2l.explorer.is_cap=0.5"
    )
    rows = made.sample(made.prompts[:2], 2)
    batch = made.pack(rows)
    old = made._old_log_probs(batch, several=False)
    weights = made._importance_weights(rows, batch, old)
    explorer = torch.tensor([source == "explorer" for source in rows.source_B])
    inside = batch.mask_B_T.bool()
    assert (weights[~explorer] == 1).all() and (weights[explorer][inside[explorer]] <= 0.5).all()
    place, ratio = 0, (old[0, 0] - rows.sampler_log_probs[0][0]).exp().item()
    assert weights[place, 0].item() == pytest.approx(min(ratio, 0.5))


def test_kl_coefficient_follows_the_accuracy_and_the_curriculum_sees_it(loop) -> None:
    made = loop("expo/toy", "data.train_max_samples=-1")
    rows = made.sample(made.prompts[:2], 1)
    rows.acc_B = [1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0]
    metrics = made.observe(rows, 1, [5, 3])
    assert metrics["s2l/kl/beta"] == pytest.approx(0.02 * (1 + 0.3583574) / 2, rel=1e-6)  # tanh(3/8)
    assert made.curriculum.pass_rates.rates[[5, 3]].tolist() == pytest.approx([0.9 * 0.5 + 0.1 * 0.75, 0.45])


def test_the_length_follows_the_learners_accuracy(loop) -> None:
    made = loop("g2rpo_a/toy", "s2l.guidance={alpha: 0.5, min_continuation: 5, length: {initial: 8, max_length: 48}}")
    for accuracies in ([1.0, 0.0, 0.0, 0.0] * 2, [1.0, 1.0, 0.0, 0.0] * 2):
        rows = made.sample(made.prompts[:2], 1)
        rows.acc_B = accuracies
        made.observe(rows, 1, [0, 1])
    assert made.length.at(3) == 4  # 8 * (1/4) / (1/2)


def test_the_same_seed_gives_the_same_steps_and_another_one_does_not(loop) -> None:
    runs = [loop("grpo/toy", f"data.seed={seed}") for seed in (1, 1, 2)]
    first, second, third = ([run.step(number)[0].responses for number in (1, 2)] for run in runs)
    assert first == second != third


def test_several_mini_batches_and_epochs_are_several_optimizer_steps(loop) -> None:
    made = loop("grpo/toy", "actor_rollout_ref.actor.ppo_mini_batch_size=1", "actor_rollout_ref.actor.ppo_epochs=2")
    made.step(1)
    (state, *_) = made.optimizer.state.values()
    assert state["step"].item() == 4


@pytest.mark.parametrize("loss", ["reverse_kl", "forward_kl", "jsd", "sampled_k1", "sft"])
def test_distillation_moves_the_student_and_leaves_the_teacher(loop, loss: str) -> None:
    teacher = "null" if loss == "sft" else "${toy_dir}/models/large"
    made = loop("sparse_to_dense/stages/opd", f"s2l.distill.loss={loss}", f"s2l.distill.teacher_path={teacher}")
    before = [weight.clone() for weight in made.learner.parameters()]
    _, metrics = made.step(1)
    assert metrics["actor/grad_norm"] > 0 and "actor/loss" in metrics and "actor/pg_loss" not in metrics
    assert any(not torch.equal(old, new) for old, new in zip(before, made.learner.parameters(), strict=True))
    assert made.teacher is None or all(weight.grad is None for weight in made.teacher.parameters())


def test_a_long_prompt_loses_its_beginning_as_in_verl(loop) -> None:
    whole, cut = loop("grpo/toy"), loop("grpo/toy", "data.max_prompt_length=11")
    ids = whole.prompt_ids(whole.prompts[0])
    assert len(ids) > 11 and cut.prompt_ids(cut.prompts[0]) == ids[-11:]


def test_a_runs_folder_is_read_like_any_other(world, tmp_path) -> None:
    cfg = compose_config("s2l_po/toy", [f"toy_dir={world}", *SMALL, "s2l.explorer.mix_steps=2"])
    run_local(cfg, tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert [step for step, _ in run.series("val-core/toy_chain/acc/mean@1")] == [0, 1, 2]
    assert {step: len(table) for step, table in read_validations([tmp_path / "run" / "validation"]).items()} == {
        0: 4,
        1: 4,
        2: 4,
    }
    ledger, size = Ledger(run), json.loads((tmp_path / "run" / "plan.json").read_text())["parameters"]
    first = run.by_step[1]
    tokens = first["perf/total_num_tokens"]
    assert first["s2l/source/explorer/rows"] == 8 and first["s2l/source/learner/rows"] == 0
    steps = run.series("timing_s/step")
    assert len(steps) == 2 and ledger.totals(all_in=True).seconds == pytest.approx(
        sum(value for _, value in steps) + sum(value for step, value in run.series("timing_s/testing") if step)
    )
    # step 1: the explorer samples all; old log-probabilities 2 P N and training 6 P N by the learner
    spent = ledger.spent_until("flops")[1]
    assert spent == pytest.approx(2 * size["explorer"] * tokens + 8 * size["learner"] * tokens)
