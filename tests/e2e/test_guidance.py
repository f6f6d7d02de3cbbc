"""G2RPO-A on the real stack: which rows are guided, by which tokens, what the length does, and a kill in between."""

import json

import numpy as np
import pytest

from s2l_ext.algorithms.guidance import AdaptiveGuidance
from s2l_ext.data.prompts import parquet_table
from s2l_ext.data.traces import answer_start

PROMPTS, GROUP, GUIDED, TOTAL = 8, 4, 2, 6
INITIAL, MOST, CONTINUATION = 40, 48, 16
OVERRIDES = (
    f"data.train_batch_size={PROMPTS}",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
    "s2l.guidance.alpha=0.5",
    f"s2l.guidance.length.initial={INITIAL}",
    f"s2l.guidance.length.max_length={MOST}",
    f"s2l.guidance.min_continuation={CONTINUATION}",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
)


@pytest.fixture(scope="module")
def overrides(small_run, tmp_path_factory) -> tuple[str, ...]:
    return (*small_run, *OVERRIDES, f"trainer.rollout_data_dir={tmp_path_factory.mktemp('rollouts')}")


@pytest.fixture(scope="module")
def run(launch, overrides):
    """Killed with SIGKILL once the checkpoint of step 2 is complete, then started again with the same command."""
    first = launch("g2rpo_a/toy", *overrides)
    first.kill_9_after_checkpoint(2)
    return launch("g2rpo_a/toy", *overrides, folder=first.folder).wait()


@pytest.fixture(scope="module")
def rollouts(run, overrides) -> dict[int, list[dict]]:
    """Rows as verl dumps them, by step: text of prompt and response, score, and the key {uid}_{session}_{output}."""
    folder = run.folder.__class__(overrides[-1].split("=", 1)[1])
    return {int(path.stem): [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


def is_guided(row: dict, first: int = 0) -> bool:
    return first <= int(row["uid"].rsplit("_", 2)[1]) < first + GUIDED


def test_exactly_round_alpha_g_rows_of_every_group_are_guided(run) -> None:
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/guided_rows"] == PROMPTS * GUIDED
        assert metrics["s2l/source/learner/rows"] == PROMPTS * GROUP


def test_guided_responses_start_with_the_first_l_tokens_of_the_trace(run, rollouts, toy_dir) -> None:
    """A token of the toy is a character, so the text itself shows the cut; no answer is handed over."""
    table = parquet_table([toy_dir / "train_tier3.parquet"])
    by_question = {
        prompt[0]["content"]: extra["trace"]
        for prompt, extra in zip(table.read("prompt"), table.read("extra_info"), strict=True)
    }
    for step, rows in rollouts.items():
        length = int(run.steps()[step]["s2l/guidance/length"])
        for row in filter(is_guided, rows):
            trace = next(trace for question, trace in by_question.items() if f"\n{question}" in row["input"])
            guidance = trace[: answer_start(trace)][:length]
            assert len(guidance) == min(length, answer_start(trace))
            assert row["output"].startswith(guidance)


def test_unguided_rows_write_their_own_text(rollouts) -> None:
    own = [row["output"] for rows in rollouts.values() for row in rows if not is_guided(row)]
    assert len(own) == TOTAL * PROMPTS * (GROUP - GUIDED) and len(set(own)) > len(own) / 4


def test_guidance_tokens_are_masked_and_all_others_are_not(run) -> None:
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/prefix_tokens"] == metrics["s2l/guidance/applied_mean"] * PROMPTS * GUIDED
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        assert metrics["s2l/guidance/continuation_tokens"] == metrics["s2l/guidance/continuation_tokens_in_loss"] > 0


def test_masked_tokens_are_in_no_statistic(run) -> None:
    """Sampler and learner agree on every token that counts; the placed tokens would show at once."""
    for metrics in run.steps().values():
        assert metrics["s2l/source/learner/sampler_k3"] < 1e-6
        assert metrics["s2l/source/learner/tokens"] < metrics["response_length/mean"] * PROMPTS * GROUP


def test_length_follows_the_logged_accuracies_by_the_rule_through_the_kill(run) -> None:
    rule = AdaptiveGuidance(initial=INITIAL, max_length=MOST)
    for step in range(1, TOTAL + 1):
        metrics = run.steps()[step]
        assert metrics["s2l/guidance/length"] == rule.length
        rule.observe(metrics["s2l/guidance/accuracy"])
        assert metrics["s2l/guidance/next_length"] == rule.length
    lengths = {run.steps()[step]["s2l/guidance/length"] for step in run.steps()}
    assert len(lengths) > 1, "a length that never moves cannot show that it follows"


def test_accuracy_of_the_rule_is_that_of_the_batch(run) -> None:
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/accuracy"] == pytest.approx(metrics["critic/score/mean"], abs=1e-6)


def test_guided_groups_have_a_learning_signal_where_unguided_rows_have_none(run) -> None:
    guided = np.mean([metrics["s2l/guidance/groups_with_signal"] for metrics in run.steps().values()])
    alone = np.mean([metrics["s2l/guidance/unguided_groups_with_signal"] for metrics in run.steps().values()])
    assert guided > alone + 0.1


def test_state_lies_beside_the_checkpoint(run) -> None:
    state = json.loads((run.folder / f"global_step_{TOTAL}" / "s2l_state.json").read_text())
    assert state["controllers"]["guidance"]["length"] == run.steps()[TOTAL]["s2l/guidance/next_length"]


@pytest.fixture(scope="module")
def with_explorer(launch, small_run):
    return launch(
        "combined/g2rpo_a_s2l",
        *small_run,
        *OVERRIDES[:6],
        "s2l.explorer.mix_steps=3",
        "trainer.total_training_steps=3",
    ).wait()


def test_a_session_is_the_explorers_or_guided_or_plain(with_explorer) -> None:
    """Slots 4, 2, 0 of four sessions: guided ones take what the explorer leaves."""
    steps = with_explorer.steps()
    assert [steps[step]["s2l/explorer/slots"] for step in (1, 2, 3)] == [4, 2, 0]
    assert [steps[step]["s2l/guidance/guided_rows"] / PROMPTS for step in (1, 2, 3)] == [0, 2, 2]
    assert [steps[step]["s2l/source/explorer/rows"] / PROMPTS for step in (1, 2, 3)] == [4, 2, 0]
