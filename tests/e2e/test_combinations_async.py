"""verl's asynchronous modes with every method off, with all four methods of the policy gradient at once, and with
distillation; each under another aggregation of the loss, which is computed anew from the rows that were saved."""

import math

import pytest

from s2l_ext.methods.explorer.schedule import LinearAnnealing

pytestmark = pytest.mark.long

PROMPTS, GROUP, TOTAL, MIX_STEPS, SCALE = 4, 4, 4, 3, 64
ROWS = PROMPTS * GROUP
COMMON = (
    "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "s2l.rollout.log_groups=8",
    f"trainer.total_training_steps={TOTAL}",
)
COLOCATED = (
    *COMMON,
    "trainer.v1.trainer_mode=colocate_async",
    "trainer.v1.colocate_async.num_warmup_batches=1.5",  # 6 prompts ahead: a step takes those of two others
)
SEPARATE = (
    *COMMON,
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.hybrid_engine=false",  # no servers on the learner's device
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=s2l_cpu",
)
TWO_DEVICES, THREE_DEVICES = (f"ray_kwargs.ray_init.num_gpus={number}" for number in (2, 3))
AGGREGATION = "actor_rollout_ref.actor.loss_agg_mode="
SUMS = (f"{AGGREGATION}seq-mean-token-sum-norm", f"actor_rollout_ref.actor.loss_scale_factor={SCALE}")
ALL = (
    "s2l.guidance={alpha: 0.5, min_continuation: 16, length: {initial: 40, max_length: 48}}",
    f"s2l.explorer.mix_steps={MIX_STEPS}",
)
TEACHER = "s2l.distill.teacher_path=${toy_dir}/models/medium"
COMBINED, OPD = "combined/expo_s2l", "sparse_to_dense/stages/opd"

PLAIN_COLOCATED = (*COLOCATED, f"{AGGREGATION}seq-mean-token-mean")
PLAIN_SEPARATE = (*SEPARATE, TWO_DEVICES, f"{AGGREGATION}token-sum")
ALL_COLOCATED = (*COLOCATED, *ALL, *SUMS)
ALL_SEPARATE = (*SEPARATE, *ALL, THREE_DEVICES, f"{AGGREGATION}seq-mean-token-sum")
DISTILL_COLOCATED = (*COLOCATED, TEACHER, f"{AGGREGATION}token-sum")
DISTILL_SEPARATE = (*SEPARATE, TEACHER, TWO_DEVICES, f"{AGGREGATION}seq-mean-token-sum")
LAUNCHES = [
    {
        "fixture": "plain_colocated",
        "recipe": "grpo/toy",
        "overrides": PLAIN_COLOCATED,
        "shown_by": "test_plain_colocated_steps_train_on_earlier_weights_rows_response_by_response",
    },
    {
        "fixture": "plain_separate",
        "recipe": "grpo/toy",
        "overrides": PLAIN_SEPARATE,
        "shown_by": "test_plain_separate_steps_train_on_the_sum_over_tokens",
    },
    {
        "fixture": "all_colocated",
        "recipe": COMBINED,
        "overrides": ALL_COLOCATED,
        "shown_by": "test_all_methods_colocated_act_on_the_rows_of_earlier_steps",
    },
    {
        "fixture": "all_separate",
        "recipe": COMBINED,
        "overrides": ALL_SEPARATE,
        "shown_by": "test_all_methods_separate_act_on_the_rows_of_earlier_steps",
    },
    {
        "fixture": "distill_colocated",
        "recipe": OPD,
        "overrides": DISTILL_COLOCATED,
        "shown_by": "test_distillation_colocated_sums_the_divergence_over_tokens",
    },
    {
        "fixture": "distill_separate",
        "recipe": OPD,
        "overrides": DISTILL_SEPARATE,
        "shown_by": "test_distillation_separate_sums_the_divergence_over_each_response",
    },
]


@pytest.fixture(scope="module")
def plain_colocated(launch, small_run):
    return launch("grpo/toy", *small_run, *PLAIN_COLOCATED).wait()


@pytest.fixture(scope="module")
def plain_separate(launch, small_run):
    return launch("grpo/toy", *small_run, *PLAIN_SEPARATE).wait()


@pytest.fixture(scope="module")
def all_colocated(launch, small_run):
    return launch(COMBINED, *small_run, *ALL_COLOCATED).wait()


@pytest.fixture(scope="module")
def all_separate(launch, small_run):
    return launch(COMBINED, *small_run, *ALL_SEPARATE).wait()


@pytest.fixture(scope="module")
def distill_colocated(launch, small_run):
    return launch(OPD, *small_run, *DISTILL_COLOCATED).wait()


@pytest.fixture(scope="module")
def distill_separate(launch, small_run):
    return launch(OPD, *small_run, *DISTILL_SEPARATE).wait()


def require_pg_loss(run, saved_rows, mode: str) -> list[list[dict]]:
    """Every step trained once on all of its rows, under ``mode`` and no other aggregation; returns the rows."""
    found = saved_rows.rows_by_step(run)
    assert sorted(found) == sorted(run.steps()) == list(range(1, TOTAL + 1))
    for step, rows in found.items():
        metrics = run.steps()[step]
        assert len(rows) == ROWS and len(saved_rows.groups(rows)) == PROMPTS
        expected = saved_rows.policy_loss(rows, mode, factor=SCALE)
        assert metrics["actor/pg_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6), step
    others = [saved_rows.policy_loss(rows, "token-mean") for rows in found.values()]
    assert max(map(abs, others)) > 0.01 and max(data["actor/grad_norm"] for data in run.steps().values()) > 1e-3
    return list(found.values())


# ---- every method off ---------------------------------------------------------------------------------------------


def staleness(run, which: str) -> list[float]:
    return [run.steps()[step][f"training/off_policy/trajectory_staleness/{which}"] for step in sorted(run.steps())]


def test_plain_colocated_steps_train_on_earlier_weights_rows_response_by_response(plain_colocated, saved_rows) -> None:
    """1.5 batches are drawn ahead: after the first step, most rows are of weights that one or two updates changed."""
    require_pg_loss(plain_colocated, saved_rows, "seq-mean-token-mean")
    assert staleness(plain_colocated, "max")[0] == 0 and 1 <= max(staleness(plain_colocated, "max")) <= 7
    apart = [plain_colocated.steps()[step]["rollout_corr/k3_kl"] for step in range(1, TOTAL + 1)]
    assert abs(apart[0]) < 1e-6 < 1e-5 < max(apart)
    assert not [name for name in plain_colocated.steps()[TOTAL] if name.startswith("s2l/")]


def test_plain_separate_steps_train_on_the_sum_over_tokens(plain_separate, saved_rows) -> None:
    """Rollouts have a device of their own, whose servers start with random weights and get the learner's."""
    require_pg_loss(plain_separate, saved_rows, "token-sum")
    assert "separate_async, 1 GPU(s) for its rollouts, 1 batch(es) drawn ahead" in plain_separate.log
    assert 1 <= max(staleness(plain_separate, "max")) <= 7
    assert all(metrics["rollout_corr/k3_kl"] < 0.2 for metrics in plain_separate.steps().values())
    assert not [name for name in plain_separate.steps()[TOTAL] if name.startswith("s2l/")]


# ---- explorer, guidance, curriculum and KL ------------------------------------------------------------------------


def require_all_methods(run, steps_of_rows: list[list[dict]]) -> None:
    """Explorer slots, guided sessions, pass rates and the coefficient are those of the rows trained on."""
    schedule = LinearAnnealing(MIX_STEPS, GROUP)
    for step, rows in enumerate(steps_of_rows, 1):
        metrics, line = run.steps()[step], run.draws()[step]
        slots = [schedule.slots(drawn) for drawn in line["drawn_at"]]
        explorers = sum(row["source"] == "explorer" for row in rows)
        assert explorers == sum(slots) == metrics["s2l/source/explorer/rows"]
        guided = sum(min(2, GROUP - number) for number in slots)  # round(alpha G) of what the explorer leaves
        assert sum(bool(row["guidance"]) for row in rows) == guided == metrics["s2l/guidance/guided_rows"]
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        accuracy = sum(row["acc"] for row in rows) / ROWS
        assert metrics["s2l/kl/accuracy"] == pytest.approx(accuracy, abs=1e-6)
        beta = 0.02 * (math.tanh(accuracy) + 1) / 2
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == pytest.approx(beta)
        loss = metrics["actor/pg_loss"] + metrics["s2l/kl/beta"] * metrics["actor/kl_loss"]
        assert metrics["actor/loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
        assert metrics["s2l/async/staleness_max"] == max(step - drawn for drawn in line["drawn_at"]) <= 7
    data = list(run.steps().values())
    assert max(metrics["s2l/async/staleness_max"] for metrics in data) >= 1
    assert (
        max(
            metrics["s2l/source/explorer/kl_sampler_learner_k3"]
            for metrics in data
            if "s2l/source/explorer/kl_sampler_learner_k3" in metrics
        )
        > 0.01
    )
    assert sum(metrics["s2l/curriculum/updated_prompts"] for metrics in data) > 0


def test_all_methods_colocated_act_on_the_rows_of_earlier_steps(all_colocated, saved_rows) -> None:
    require_all_methods(all_colocated, require_pg_loss(all_colocated, saved_rows, "seq-mean-token-sum-norm"))


def test_all_methods_separate_act_on_the_rows_of_earlier_steps(all_separate, saved_rows) -> None:
    require_all_methods(all_separate, require_pg_loss(all_separate, saved_rows, "seq-mean-token-sum"))


# ---- distillation -------------------------------------------------------------------------------------------------


def require_divergence(run, saved_rows, shares: float) -> None:
    """The loss is the sum of the divergence over the tokens of the saved rows, divided by ``shares``."""
    found = saved_rows.rows_by_step(run)
    assert sorted(found) == sorted(run.steps()) == list(range(1, TOTAL + 1))
    for step, rows in found.items():
        metrics = run.steps()[step]
        assert metrics["s2l/distill/tokens"] == sum(saved_rows.tokens(row) for row in rows)
        total = metrics["s2l/distill/reverse_kl"] * metrics["s2l/distill/tokens"]
        assert total > 0 and metrics["actor/loss"] == pytest.approx(total / shares, rel=1e-4)
        assert metrics["actor/grad_norm"] > 0 and metrics["s2l/async/staleness_max"] <= 7
    assert max(metrics["s2l/async/staleness_max"] for metrics in run.steps().values()) >= 1


def test_distillation_colocated_sums_the_divergence_over_tokens(distill_colocated, saved_rows) -> None:
    require_divergence(distill_colocated, saved_rows, shares=1)


def test_distillation_separate_sums_the_divergence_over_each_response(distill_separate, saved_rows) -> None:
    require_divergence(distill_separate, saved_rows, shares=ROWS)
