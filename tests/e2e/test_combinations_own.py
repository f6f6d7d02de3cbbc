"""An agent-loop manager of one's own with verl alone, with EXPO and with distillation; and plain GRPO killed with
SIGKILL, which goes on to the numbers of a run that was not killed."""

import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

GROUP, PROMPTS, SCALE = 4, 4, 64
COMMON = (
    "+actor_rollout_ref.rollout.agent.agent_loop_manager_class=own_manager.GreedyFirst",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "s2l.rollout.log_groups=8",
)
AGGREGATION = "actor_rollout_ref.actor.loss_agg_mode="
PLAIN = (
    *COMMON,
    f"{AGGREGATION}seq-mean-token-sum",
    "trainer.total_training_steps=4",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
)
EXPO = (*COMMON, f"{AGGREGATION}token-mean", "trainer.total_training_steps=3")
DISTILLED = (
    *COMMON,
    f"{AGGREGATION}seq-mean-token-sum-norm",
    f"actor_rollout_ref.actor.loss_scale_factor={SCALE}",
    "s2l.distill.teacher_path=${toy_dir}/models/medium",
    "trainer.total_training_steps=2",
)
OPD = "sparse_to_dense/stages/opd"
LAUNCHES = [
    {
        "fixture": "killed",
        "recipe": "grpo/toy",
        "overrides": PLAIN,
        "shown_by": "test_verls_own_trainer_samples_through_the_manager",
        "rows": {"resume after kill -9": "test_plain_grpo_goes_on_to_the_numbers_of_a_run_without_a_kill"},
    },
    {
        "fixture": "expo",
        "recipe": "expo/toy",
        "overrides": EXPO,
        "shown_by": "test_expo_reads_what_the_manager_sampled",
    },
    {
        "fixture": "distilled",
        "recipe": OPD,
        "overrides": DISTILLED,
        "shown_by": "test_distillation_reads_what_the_manager_sampled",
        "rows": {"loss `seq-mean-token-sum-norm`": "test_the_divergence_is_summed_and_scaled"},
    },
]


@pytest.fixture(scope="module")
def importable():
    """The manager's module, for Ray's workers too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
        yield


@pytest.fixture(scope="module")
def whole(launch, small_run, importable):
    return launch("grpo/toy", *small_run, *PLAIN).wait()


@pytest.fixture(scope="module")
def killed(kill_and_resume, small_run, importable):
    return kill_and_resume("grpo/toy", *small_run, *PLAIN)


@pytest.fixture(scope="module")
def expo(launch, small_run, importable):
    return launch("expo/toy", *small_run, *EXPO).wait()


@pytest.fixture(scope="module")
def distilled(launch, small_run, importable):
    return launch(OPD, *small_run, *DISTILLED).wait()


def require_greedy_groups(run, saved_rows, steps: int) -> None:
    """One group of every step is the manager's greedy one: its responses are one text, which those of another group are
    by chance only."""
    noted = (run.folder / "greedy.txt").read_text().split()
    assert sorted(run.steps()) == list(range(1, steps + 1))
    for step, rows in saved_rows.rows_by_step(run).items():
        texts = {uid: {row["response"] for row in group} for uid, group in saved_rows.groups(rows).items()}
        assert len(rows) == PROMPTS * GROUP and len(texts) == PROMPTS
        alike = {uid for uid, found in texts.items() if len(found) == 1}
        assert len(set(texts) & set(noted)) == 1 and set(texts) & set(noted) <= alike, step
        assert len(alike) < PROMPTS, step


# ---- every method off ---------------------------------------------------------------------------------------------


def test_verls_own_trainer_samples_through_the_manager(killed, saved_rows) -> None:
    _, run = killed
    require_greedy_groups(run, saved_rows, steps=4)
    for step, rows in saved_rows.rows_by_step(run).items():
        metrics = run.steps()[step]
        expected = saved_rows.policy_loss(rows, "seq-mean-token-sum")
        assert metrics["actor/pg_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-5)
        assert metrics["rollout_corr/k3_kl"] < 1e-6, "the sampler has the learner's weights, after the kill too"
        assert not [name for name in metrics if name.startswith("s2l/")]


def test_plain_grpo_goes_on_to_the_numbers_of_a_run_without_a_kill(killed, whole) -> None:
    before, run = killed
    assert set(before) >= {1, 2} and sorted(run.steps()) == sorted(whole.steps()) == [1, 2, 3, 4]
    lines = [line["step"] for line in run.lines() if "training/global_step" in line["data"]]
    assert lines == [1, 2, 3, 4]
    for step, there in whole.steps().items():
        here = run.steps()[step]
        for metric in ("critic/score/mean", "response_length/mean", "actor/pg_loss", "actor/grad_norm", "actor/lr"):
            assert here[metric] == pytest.approx(there[metric], rel=1e-5, abs=1e-6), (step, metric)
    assert any(metrics["actor/grad_norm"] > 1e-3 for step, metrics in whole.steps().items() if step > 2)


def test_the_prompts_after_the_kill_are_those_of_a_run_without_one(killed, whole, saved_rows) -> None:
    _, run = killed
    prompts = [
        {step: sorted({row["prompt"] for row in rows}) for step, rows in saved_rows.rows_by_step(one).items()}
        for one in (run, whole)
    ]
    assert prompts[0] == prompts[1] and len({text for texts in prompts[0].values() for text in texts}) == 4 * PROMPTS


# ---- methods ------------------------------------------------------------------------------------------------------


def test_expo_reads_what_the_manager_sampled(expo, saved_rows) -> None:
    """Greedy groups too: pass rates are of them, and the coefficient follows the accuracy of all rows."""
    require_greedy_groups(expo, saved_rows, steps=3)
    for step, rows in saved_rows.rows_by_step(expo).items():
        metrics, line = expo.steps()[step], expo.draws()[step]
        accuracy = sum(row["acc"] for row in rows) / len(rows)
        assert metrics["s2l/kl/accuracy"] == pytest.approx(accuracy, abs=1e-6)
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]
        rates = [sum(row["acc"] for row in group) / GROUP for group in saved_rows.groups(rows).values()]
        assert sorted(line["pass_rates"]) == pytest.approx(sorted(rates))
        expected = saved_rows.policy_loss(rows, "token-mean")
        assert metrics["actor/pg_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6)


def test_distillation_reads_what_the_manager_sampled(distilled, saved_rows) -> None:
    require_greedy_groups(distilled, saved_rows, steps=2)
    for step, rows in saved_rows.rows_by_step(distilled).items():
        metrics = distilled.steps()[step]
        assert metrics["s2l/distill/tokens"] == sum(saved_rows.tokens(row) for row in rows)
        assert metrics["s2l/distill/reverse_kl"] > 0 and metrics["actor/grad_norm"] > 0


def test_the_divergence_is_summed_and_scaled(distilled) -> None:
    for metrics in distilled.steps().values():
        total = metrics["s2l/distill/reverse_kl"] * metrics["s2l/distill/tokens"]
        assert metrics["actor/loss"] == pytest.approx(total / (PROMPTS * GROUP) / SCALE, rel=1e-4)
