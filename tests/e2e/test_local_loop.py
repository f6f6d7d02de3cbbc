"""The local loop against verl's workers, method by method: the same rows, the same loss and gradient."""

import pytest

from s2l_ext.launch.compose import compose_config
from s2l_ext.studies.local.loop import LocalLoop
from s2l_ext.studies.local.run import read_prompts

pytestmark = pytest.mark.long

STEPS = "trainer.total_training_steps=2"
GUIDED = (
    "s2l.guidance={alpha: 0.5, min_continuation: 16, loss_on_guidance: true, length: {initial: 40, max_length: 48}}"
)
RUNS = {
    # one mini-batch: which rows share one of several depends on the order in which sessions end, which no file keeps
    "GRPO, three epochs": (
        "grpo/toy",
        ("trainer.v1.trainer_mode=s2l", "actor_rollout_ref.actor.ppo_epochs=3"),
    ),
    "S2L-PO, a baseline for each source": (
        "s2l_po/toy",
        ("s2l.explorer.mix_steps=3", "s2l.explorer.baseline=per_source"),
    ),
    "G2RPO-A, guidance in the loss": ("g2rpo_a/toy", (GUIDED,)),
    "EXPO": ("expo/toy", ("actor_rollout_ref.rollout.seed=1",)),  # with seed 0 a response holds a special token
    "on-policy distillation": ("sparse_to_dense/stages/opd", ("s2l.distill.teacher_path=${toy_dir}/models/medium",)),
}
COMPARED = (
    "actor/pg_loss",
    "actor/kl_loss",
    "actor/grad_norm",
    "s2l/kl/beta",
    "s2l/guidance/length",
    "actor/loss",
)


@pytest.mark.parametrize("name", RUNS)
def test_loss_and_gradient_are_the_workers(launch, small_run, toy_dir, saved_rows, name: str) -> None:
    recipe, own = RUNS[name]
    overrides = [*small_run, STEPS, "s2l.rollout.log_groups=8", *own]
    run = launch(recipe, *overrides).wait()
    known = [one for one in overrides if "agent_loop" not in one and "rollout.seed" not in one]
    cfg = compose_config(recipe, [f"toy_dir={toy_dir}", *known])
    found = saved_rows.replayed(LocalLoop(cfg, read_prompts(cfg.data.train_files, -1, 0)), run)
    assert sorted(found) == [1, 2]
    compared = 0
    for step, local in found.items():
        metrics = run.steps()[step]
        for metric in set(COMPARED) & set(local):
            assert local[metric] == pytest.approx(metrics[metric], rel=1e-5, abs=1e-6), (step, metric)
            compared += 1
    assert compared >= 4
