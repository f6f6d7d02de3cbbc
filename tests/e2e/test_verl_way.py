"""The trainer started by verl's own command: S2L-PO (per-source baseline, truncated importance weights) and EXPO
together on two FSDP workers whose accelerators the explorer shares, with two mini-batches and two epochs."""

import math
import re
import sys

import numpy as np
import pytest
from omegaconf import OmegaConf

from s2l_ext.launch.compose import compose_config

BETA, PROMPTS, TOTAL = 0.02, 8, 4
STEPS = range(1, TOTAL + 1)
SLOTS = [4, 2, 0, 0]
OVERRIDES = (
    f"data.train_batch_size={PROMPTS}",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_epochs=2",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.n_gpus_per_node=2",
    "ray_kwargs.ray_init.num_gpus=2",
)
README = (
    "trainer.v1.trainer_mode=s2l",
    "+s2l.explorer.mix_steps=3",
    "+s2l.kl.type=accuracy",
    "actor_rollout_ref.actor.use_kl_loss=true",
    "+s2l.curriculum.type=gaussian",
    "data.dataloader_num_workers=0",
)


@pytest.fixture(scope="module")
def run(launch, small_run, toy_dir, tmp_path_factory):
    config = compose_config("combined/expo_s2l", [*small_run, *OVERRIDES])
    plain = OmegaConf.to_container(config, resolve=False)
    del plain["s2l"]
    plain["trainer"]["v1"]["trainer_mode"], plain["actor_rollout_ref"]["actor"]["use_kl_loss"] = "sync", False
    folder = tmp_path_factory.mktemp("verl_way")
    OmegaConf.save(OmegaConf.create(plain), folder / "verl_only.yaml")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", f"--config-path={folder}", "--config-name=verl_only"]
    return launch(
        "",
        *README,
        f"+s2l.explorer.model_path={toy_dir}/models/small",
        "+s2l.explorer.placement=colocated",
        "+s2l.explorer.baseline=per_source",
        "+s2l.explorer.correction=truncated_is",
        "+s2l.explorer.is_cap=1.5",
        "+s2l.curriculum.sigma=0.15",
        "+s2l.rollout.poll_interval_s=0.2",
        command=command,
        folder=folder,
    ).wait()


def test_every_step_ran_with_the_schedule(run) -> None:
    assert [run.steps()[step]["s2l/explorer/rollouts_per_group"] for step in STEPS] == SLOTS


def test_two_training_workers_with_two_vllm_servers_each_on_two_accelerators(run) -> None:
    """With RAY_DEDUP_LOGS=0 every process that logs anything shows its pid. Ray has two logical accelerators."""
    workers = set(re.findall(r"\(WorkerDict pid=(\d+)\)", run.log))
    servers = set(re.findall(r"\(vLLMHttpServer pid=(\d+)\)", run.log))
    assert len(workers) == 2
    assert len(servers) == 4
    assert "explorer colocated with the learner: 2 replica(s), always awake (free_cache_engine=false)" in run.log


def test_each_source_has_its_own_baseline(run) -> None:
    for step in STEPS:
        metrics = run.steps()[step]
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                assert metrics[f"s2l/source/{source}/advantage_mean"] == pytest.approx(0, abs=1e-4)


def test_weights_are_capped_on_explorer_rows_and_one_elsewhere(run) -> None:
    mixed = run.steps()[2]
    assert 0 < mixed["s2l/source/explorer/is_weight_mean"] <= 1.5
    assert mixed["s2l/source/explorer/is_weight_mean"] != pytest.approx(1.0, abs=1e-3)
    assert 0 < mixed["s2l/source/explorer/is_clamped_fraction"] < 1
    assert mixed["s2l/source/learner/is_weight_mean"] == 1.0
    assert run.steps()[1]["s2l/source/explorer/is_ratio_max"] > 1.5


def test_the_loss_on_both_workers_multiplied_in_these_weights(run) -> None:
    """What the workers report from inside the loss equals what the driver wrote, at every step."""
    for step in STEPS:
        metrics = run.steps()[step]
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                written = metrics[f"s2l/source/{source}/is_weight_mean"]
                assert metrics[f"s2l/source/{source}/applied_weight_mean"] == pytest.approx(written, rel=1e-5)


def test_servers_stopped_and_left_the_learners_accelerators_alone(run) -> None:
    assert [run.steps()[step]["s2l/explorer/num_gpus"] for step in STEPS] == [0] * TOTAL
    assert "explorer servers stopped, 0 of their 0 GPUs released" in run.log


# ---- EXPO in the same run -----------------------------------------------------------------------------------------


def test_beta_follows_accuracy_by_the_papers_formula_at_every_step(run) -> None:
    accuracies = [run.steps()[step]["s2l/kl/accuracy"] for step in STEPS]
    for step, accuracy in zip(STEPS, accuracies, strict=True):
        assert run.steps()[step]["s2l/kl/beta"] == pytest.approx(BETA * (math.tanh(accuracy) + 1) / 2, abs=1e-6)
    assert len(set(accuracies)) > 1, "one accuracy cannot show that beta follows it"


def test_both_workers_and_every_mini_batch_used_this_beta(run) -> None:
    """``actor/kl_coef`` is verl's own metric, a mean over all micro-batches of the coefficient in its loss."""
    for metrics in run.steps().values():
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]
        assert metrics["actor/kl_coef"] == pytest.approx(metrics["s2l/kl/beta"], rel=1e-9)


def test_the_kl_term_is_alive(run) -> None:
    assert max(metrics["s2l/kl/kl"] for metrics in run.steps().values()) > 0


def test_accuracy_is_that_of_the_batch_and_counts_both_sources(run) -> None:
    """On the toy the reward is correctness, so verl's mean score is an independent witness."""
    for metrics in run.steps().values():
        assert metrics["s2l/kl/accuracy"] == pytest.approx(metrics["critic/score/mean"], abs=1e-6)
    mixed = run.steps()[2]
    rows = {source: mixed[f"s2l/source/{source}/rows"] for source in ("explorer", "learner")}
    total = sum(mixed[f"s2l/source/{source}/acc_mean"] * count for source, count in rows.items())
    assert mixed["s2l/kl/accuracy"] == pytest.approx(total / sum(rows.values()), abs=1e-6)


def test_statistics_of_the_curriculum_are_logged_at_every_step(run) -> None:
    """Drawn prompts are counted from step 1 on; their pass rates are known once the learner has sampled."""
    assert sorted(run.draws()) == list(STEPS)
    for step in STEPS:
        metrics = run.steps()[step]
        assert 0 <= metrics["s2l/curriculum/pass_rate_mean"] <= 1
        assert len(set(run.draws()[step]["indices"])) == PROMPTS


def test_pass_rates_come_from_learner_rows_only(run) -> None:
    """Step 1 has explorer rows only: nothing is learned about prompts. From step 2 on every prompt is."""
    steps, lines = run.steps(), run.draws()
    assert steps[1]["s2l/curriculum/updated_prompts"] == 0 and lines[1]["pass_rates"] == [None] * PROMPTS
    assert steps[1]["s2l/curriculum/never_seen_share"] == 1.0
    for step in STEPS[1:]:
        assert steps[step]["s2l/curriculum/updated_prompts"] == PROMPTS
        learner = steps[step]["s2l/source/learner/acc_mean"]
        assert np.mean(lines[step]["pass_rates"]) == pytest.approx(learner, abs=1e-6)
