"""Filtered groups, rejection sampling, another reward manager and the loss summed over tokens, with explorer, guidance
and KL on, and distillation in several turns: what test_combinations.py leaves out."""

import json
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

GROUP = 4
TOOL_TEXT = "\ntool\nsure?\nassistant\n"
TOOL_TOKENS = len(TOOL_TEXT) + 3
"""With the start of two turns and the end of one, a token each."""
KL = ("s2l.kl={type: accuracy, beta: 0.02}", "actor_rollout_ref.actor.use_kl_loss=true")
LOGGED = ("s2l.rollout.log_groups=8", "actor_rollout_ref.rollout.calculate_log_probs=true")
MANAGER = "reward.reward_manager.name=dapo"
FILTER = ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc")
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
LAUNCHES = [
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


def rows_by_step(run) -> dict[int, list[dict]]:
    lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    return {line["step"]: line["rows"] for line in lines}


def outcomes(rows: list[dict]) -> dict[str, set[float]]:
    """Accuracies that occur in each group."""
    return {uid: {row["acc"] for row in rows if row["uid"] == uid} for uid in {row["uid"] for row in rows}}


@pytest.fixture(scope="module")
def filtered(launch, small_run):
    return launch(RECIPE, *small_run, *FILTERED).wait()


def test_every_group_trained_on_is_mixed(filtered) -> None:
    """Plans of the groups that verl drew and dropped are in no file and no count."""
    for step, rows in rows_by_step(filtered).items():
        metrics = filtered.steps()[step]
        found = outcomes(rows)
        assert len(found) == 4 and all(len(accuracies) == 2 for accuracies in found.values())
        assert metrics["s2l/source/explorer/rows"] + metrics["s2l/source/learner/rows"] == 4 * GROUP
        slots = {1: 4, 2: 2, 3: 0}[step]
        assert metrics["s2l/explorer/slots"] == slots and metrics["s2l/source/explorer/rows"] == slots * 4
    dropped = [data.get("training/filter_groups/evicted_samples", 0) for data in filtered.steps().values()]
    assert sum(dropped) > 0


# ---- distillation -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def distilled(kill_and_resume, small_run):
    return kill_and_resume(OPD, *small_run, *DISTILLED)


def test_the_divergence_is_of_the_models_own_turns(distilled) -> None:
    """The loss reads every token of the responses but the tool's: the half of them in each of two mini-batches."""
    _, run = distilled
    for step, rows in rows_by_step(run).items():
        metrics = run.steps()[step]
        asked = sum(TOOL_TEXT in row["response"] for row in rows)
        own = metrics["response_length/mean"] * 8 * GROUP - asked * TOOL_TOKENS
        assert asked > 0 and metrics["s2l/distill/tokens"] == pytest.approx(own / 2)
        assert metrics["s2l/distill/reverse_kl"] > 0 and metrics["actor/grad_norm"] > 0


def test_a_killed_distillation_goes_on(distilled) -> None:
    before, run = distilled
    assert set(before) >= {1, 2} and sorted(run.steps()) == [1, 2, 3]
