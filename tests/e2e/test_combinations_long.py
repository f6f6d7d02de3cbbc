"""What test_combinations.py leaves out: verl's own features with every method off, rollout corrections, filtered
groups, another reward manager, the loss summed over tokens, and distillation in several turns."""

from pathlib import Path

import pytest

pytestmark = pytest.mark.long

GROUP = 4
TOOL_TEXT = "\ntool\nsure?\nassistant\n"
TOOL_TOKENS = len(TOOL_TEXT) + 3
"""With the start of two turns and the end of one, a token each."""
GUIDANCE = "s2l.guidance={alpha: 0.5, min_continuation: 16, length: {initial: 40, max_length: 48}}"
KL = ("s2l.kl={type: accuracy, beta: 0.02}", "actor_rollout_ref.actor.use_kl_loss=true")
LOGGED = ("s2l.rollout.log_groups=8", "actor_rollout_ref.rollout.calculate_log_probs=true")
MANAGER = "reward.reward_manager.name=dapo"
FILTER = ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc")
IS = ("algorithm.rollout_correction.rollout_is=token", "algorithm.rollout_correction.rollout_is_threshold=2.0")
RS = (
    "algorithm.rollout_correction.rollout_rs=seq_mean_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0",
)
UPDATES = ("data.train_batch_size=8", "actor_rollout_ref.actor.ppo_epochs=2")
TOOLS = (
    "data.max_response_length=96",
    "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
    "actor_rollout_ref.rollout.multi_turn.format=toy_boxed",
    f"actor_rollout_ref.rollout.multi_turn.function_tool_path={Path(__file__).with_name('toy_tool.py')}",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=2",
)
RESUMED = ("trainer.total_training_steps=3", "trainer.save_freq=1", "trainer.max_actor_ckpt_to_keep=2")

TWO_STEPS = "trainer.total_training_steps=2"

PLAIN = (
    *LOGGED,
    *UPDATES,
    *TOOLS,
    *FILTER,
    *IS,
    *RS,
    MANAGER,
    TWO_STEPS,
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
    "actor_rollout_ref.model.lora_rank=8",
)
PLAIN_FSDP1 = (
    *LOGGED,
    TWO_STEPS,
    "algorithm.rollout_correction.bypass_mode=true",
    "actor_rollout_ref.actor.strategy=fsdp",
    "actor_rollout_ref.ref.strategy=fsdp",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    "actor_rollout_ref.actor.loss_scale_factor=64",
)
CORRECTED = (
    GUIDANCE,
    *LOGGED,
    *IS,
    *RS,
    MANAGER,
    TWO_STEPS,
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum-norm",
    "actor_rollout_ref.actor.loss_scale_factor=64",
)
BYPASS = (
    GUIDANCE,
    *LOGGED,
    TWO_STEPS,
    "algorithm.rollout_correction.bypass_mode=true",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
)
EVERYTHING = (
    GUIDANCE,
    *LOGGED,
    *RS,
    MANAGER,
    TWO_STEPS,
    "s2l.explorer.mix_steps=3",
    "actor_rollout_ref.actor.loss_agg_mode=token-sum",
)
FILTERED = (
    *KL,
    *LOGGED,
    *FILTER,
    *RS,
    MANAGER,
    "s2l.explorer.mix_steps=3",
    "actor_rollout_ref.actor.loss_agg_mode=token-sum",
    "trainer.total_training_steps=3",
)
DISTILLED = (
    *LOGGED,
    *UPDATES,
    *TOOLS,
    *FILTER,
    *RESUMED,
    MANAGER,
    "s2l.distill.teacher_path=${toy_dir}/models/medium",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
)
RECIPE, OPD = "combined/g2rpo_a_s2l", "sparse_to_dense/stages/opd"
EXPO, COMBINED = "expo/toy", "combined/expo_s2l"
LAUNCHES = [
    {
        "fixture": "plain",
        "recipe": "grpo/toy",
        "overrides": PLAIN,
        "shown_by": "test_verls_own_features_run_with_every_method_off",
    },
    {
        "fixture": "plain_fsdp1",
        "recipe": "grpo/toy",
        "overrides": PLAIN_FSDP1,
        "shown_by": "test_fsdp1_in_bypass_with_every_method_off",
    },
    {
        "fixture": "corrected",
        "recipe": EXPO,
        "overrides": CORRECTED,
        "shown_by": "test_corrections_see_no_guidance_and_weigh_nothing_away",
    },
    {
        "fixture": "bypass",
        "recipe": EXPO,
        "overrides": BYPASS,
        "shown_by": "test_in_bypass_the_sampler_is_the_old_policy",
    },
    {
        "fixture": "everything",
        "recipe": COMBINED,
        "overrides": EVERYTHING,
        "shown_by": "test_rejection_goes_with_all_methods",
    },
    {
        "fixture": "filtered",
        "recipe": RECIPE,
        "overrides": FILTERED,
        "shown_by": "test_every_group_trained_on_is_mixed",
    },
    {
        "fixture": "distilled",
        "recipe": OPD,
        "overrides": DISTILLED,
        "shown_by": "test_the_divergence_is_of_the_models_own_turns",
        "rows": {"resume after kill -9": "test_a_killed_distillation_goes_on"},
    },
]


def outcomes(rows: list[dict]) -> dict[str, set[float]]:
    """Accuracies that occur in each group."""
    return {uid: {row["acc"] for row in rows if row["uid"] == uid} for uid in {row["uid"] for row in rows}}


# ---- every method off ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def plain(launch, small_run):
    return launch("grpo/toy", *small_run, *PLAIN).wait()


@pytest.fixture(scope="module")
def plain_fsdp1(launch, small_run):
    return launch("grpo/toy", *small_run, *PLAIN_FSDP1).wait()


def test_verls_own_features_run_with_every_method_off(plain, saved_rows) -> None:
    """Groups are mixed, the tool was asked, and the adapter that was trained is the one that samples."""
    for step, rows in saved_rows.rows_by_step(plain).items():
        metrics = plain.steps()[step]
        assert len(rows) == 8 * GROUP and all(len(found) == 2 for found in outcomes(rows).values())
        assert any(TOOL_TEXT in row["response"] for row in rows)
        assert metrics["rollout_corr/k3_kl"] < 1e-4 and metrics["actor/grad_norm"] > 1e-4
        assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-3)
        assert metrics["training/filter_groups/evicted_samples"] > 0
        assert not [name for name in metrics if name.startswith("s2l/")]


def test_fsdp1_in_bypass_with_every_method_off(plain_fsdp1) -> None:
    for metrics in plain_fsdp1.steps().values():
        assert metrics["actor/ppo_kl"] == pytest.approx(0, abs=1e-4) and metrics["actor/grad_norm"] > 1e-4
        assert "actor/entropy" not in metrics, "old log-probs, which it comes with, were computed after all"
        assert not [name for name in metrics if name.startswith("s2l/")]


# ---- methods ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corrected(launch, small_run):
    return launch(EXPO, *small_run, *CORRECTED).wait()


@pytest.fixture(scope="module")
def bypass(launch, small_run):
    return launch(EXPO, *small_run, *BYPASS).wait()


@pytest.fixture(scope="module")
def everything(launch, small_run):
    return launch(COMBINED, *small_run, *EVERYTHING).wait()


def test_corrections_see_no_guidance_and_weigh_nothing_away(corrected) -> None:
    """Sampler and learner are one model: each weight is 1, and no own token is rejected for its guidance."""
    for metrics in corrected.steps().values():
        assert metrics["rollout_corr/rollout_is_mean"] == pytest.approx(1, abs=1e-3)
        assert metrics["rollout_corr/rollout_rs_masked_fraction"] == 0
        assert metrics["s2l/guidance/prefix_tokens"] > 0 and metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        own = metrics["s2l/guidance/continuation_tokens"]
        assert own == metrics["s2l/guidance/continuation_tokens_in_loss"] > 0


def test_in_bypass_the_sampler_is_the_old_policy(bypass) -> None:
    for metrics in bypass.steps().values():
        assert "actor/entropy" not in metrics, "old log-probs, which it comes with, were computed after all"
        assert metrics["s2l/source/learner/ppo_ratio_mean"] == pytest.approx(1, abs=1e-4)
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0 and metrics["actor/grad_norm"] > 1e-4


def test_rejection_goes_with_all_methods(everything) -> None:
    """The rejection is computed over rows of both models, and rejects none of the toy's: they are close enough."""
    for step, metrics in everything.steps().items():
        assert metrics["s2l/source/explorer/rows"] == {1: 4, 2: 2}[step] * 4
        assert metrics["rollout_corr/rollout_rs_masked_fraction"] == 0
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0


@pytest.fixture(scope="module")
def filtered(launch, small_run):
    return launch(RECIPE, *small_run, *FILTERED).wait()


def test_every_group_trained_on_is_mixed(filtered, saved_rows) -> None:
    """Plans of the groups that verl drew and dropped are in no file and no count."""
    for step, rows in saved_rows.rows_by_step(filtered).items():
        metrics = filtered.steps()[step]
        found = outcomes(rows)
        assert len(found) == 4 and all(len(accuracies) == 2 for accuracies in found.values())
        assert metrics["s2l/source/explorer/rows"] + metrics["s2l/source/learner/rows"] == 4 * GROUP
        slots = {1: 4, 2: 2, 3: 0}[step]
        assert metrics["s2l/explorer/rollouts_per_group"] == slots and metrics["s2l/source/explorer/rows"] == slots * 4
    dropped = [data.get("training/filter_groups/evicted_samples", 0) for data in filtered.steps().values()]
    assert sum(dropped) > 0


# ---- distillation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(kill_and_resume, small_run):
    return kill_and_resume(OPD, *small_run, *DISTILLED)


def test_the_divergence_is_of_the_models_own_turns(distilled, saved_rows) -> None:
    """The loss reads every token of the responses but the tool's: the half of them in each of two mini-batches."""
    _, run = distilled
    for step, rows in saved_rows.rows_by_step(run).items():
        metrics = run.steps()[step]
        asked = sum(TOOL_TEXT in row["response"] for row in rows)
        own = metrics["response_length/mean"] * 8 * GROUP - asked * TOOL_TOKENS
        assert asked > 0 and metrics["s2l/distill/tokens"] == pytest.approx(own / 2)
        assert metrics["s2l/distill/reverse_kl"] > 0 and metrics["actor/grad_norm"] > 0


def test_a_killed_distillation_goes_on(distilled) -> None:
    before, run = distilled
    assert set(before) >= {1, 2} and sorted(run.steps()) == [1, 2, 3]
