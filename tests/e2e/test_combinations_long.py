"""Filtered groups, rejection sampling, another reward manager and the loss summed over tokens, with explorer, guidance
and KL on: what test_combinations.py leaves out."""

import json

import pytest

pytestmark = pytest.mark.long

GROUP = 4
KL = ("s2l.kl={type: accuracy, beta: 0.02}", "actor_rollout_ref.actor.use_kl_loss=true")
LOGGED = ("s2l.rollout.log_groups=8", "actor_rollout_ref.rollout.calculate_log_probs=true")
MANAGER = "reward.reward_manager.name=dapo"
FILTER = ("algorithm.filter_groups.enable=true", "algorithm.filter_groups.metric=acc")
RS = (
    "algorithm.rollout_correction.rollout_rs=seq_mean_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0",
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
RECIPE = "combined/g2rpo_a_s2l"
LAUNCHES = [
    {
        "fixture": "filtered",
        "recipe": RECIPE,
        "overrides": FILTERED,
        "shown_by": "test_every_group_trained_on_is_mixed",
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
