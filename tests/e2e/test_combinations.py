"""What users of verl combine with this package, on the real stack with all four methods of the policy gradient on.

Three launches. ``tools``: LoRA, several turns with a tool, packed rows, dynamic batches, two epochs of two
mini-batches. ``fsdp1`` and ``fsdp2``: the same seeds under verl's two engines, rows packed in dynamic batches under
one and padded in fixed ones under the other, so the numbers of both must agree.
"""

import math
from pathlib import Path

import pytest

GROUP, PROMPTS, TOTAL, BETA = 4, 8, 3, 0.02
STEPS = range(1, TOTAL + 1)
SLOTS, GUIDED = [4, 2, 0], [0, 2, 2]
"""Of the four sessions of a group, by step: the explorer's, and the learner's that continue a trace."""

TOOL = Path(__file__).with_name("toy_tool.py")
TOOL_TEXT = "\ntool\nsure?\nassistant\n"
TOOL_TOKENS = len(TOOL_TEXT) + len(["<|im_start|>", "<|im_end|>", "<|im_start|>"])
"""The newline after the first turn's end, then ``<|im_start|>tool\\nsure?<|im_end|>\\n<|im_start|>assistant\\n``."""

METHODS = (
    "s2l.explorer.mix_steps=3",
    "s2l.guidance={alpha: 0.5, min_continuation: 16, length: {initial: 40, max_length: 48}}",
    f"trainer.total_training_steps={TOTAL}",
    "s2l.rollout.log_groups=8",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-mean",
    "actor_rollout_ref.actor.clip_ratio_high=0.28",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
    "algorithm.norm_adv_by_std_in_grpo=false",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
)
PACKED = (
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=400",
    "actor_rollout_ref.ref.log_prob_max_token_len_per_gpu=400",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=400",
)
TOOLS = (
    *METHODS,
    *PACKED,
    f"data.train_batch_size={PROMPTS}",
    "data.max_response_length=96",
    "actor_rollout_ref.actor.ppo_epochs=2",
    "actor_rollout_ref.model.lora_rank=8",
    "actor_rollout_ref.rollout.agent.default_agent_loop=tool_agent",
    "actor_rollout_ref.rollout.multi_turn.format=toy_boxed",
    f"actor_rollout_ref.rollout.multi_turn.function_tool_path={TOOL}",
    "actor_rollout_ref.rollout.multi_turn.max_assistant_turns=2",
)
FSDP1 = (*METHODS, *PACKED, "actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.ref.strategy=fsdp")

RECIPE = "combined/expo_s2l"
LAUNCHES = [
    {
        "fixture": "fsdp1",
        "recipe": RECIPE,
        "overrides": FSDP1,
        "shown_by": "test_fsdp1_packed_gives_the_numbers_of_fsdp2_padded",
        "rows": {},
    },
    {
        "fixture": "fsdp2",
        "recipe": RECIPE,
        "overrides": METHODS,
        "shown_by": "test_the_local_loop_computes_the_loss_and_the_gradient_of_the_workers",
        "rows": {
            "loss `seq-mean-token-mean`": "test_every_response_weighs_the_same",
            "`norm_adv_by_std_in_grpo` false": "test_every_response_weighs_the_same",
        },
    },
    {
        "fixture": "tools",
        "recipe": RECIPE,
        "overrides": TOOLS,
        "shown_by": "test_the_tools_words_are_in_no_loss",
        "rows": {
            "LoRA, `model.lora_rank`": "test_adapters_reach_the_sampler_and_the_reference_is_without_them",
            "`ppo_epochs` 2, two mini-batches": "test_later_updates_are_off_policy_and_use_the_same_beta",
            "entropy term": "test_the_loss_is_the_sum_of_its_terms",
        },
    },
]


@pytest.fixture(scope="module")
def dumped(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("tool_rollouts")


@pytest.fixture(scope="module")
def tools(launch, small_run, dumped):
    return launch(RECIPE, *small_run, *TOOLS, f"trainer.rollout_data_dir={dumped}").wait()


@pytest.fixture(scope="module")
def fsdp1(launch, small_run):
    return launch(RECIPE, *small_run, *FSDP1).wait()


@pytest.fixture(scope="module")
def fsdp2(launch, small_run):
    return launch(RECIPE, *small_run, *METHODS).wait()


def group_means(rows: list[dict]) -> dict[str, float]:
    uids = {row["uid"] for row in rows}
    return {uid: sum(row["score"] for row in rows if row["uid"] == uid) / GROUP for uid in uids}


# ---- several turns, LoRA, packed rows, several updates ------------------------------------------------------------


def test_sessions_are_whose_they_should_be_over_several_turns(tools, saved_rows) -> None:
    for step, rows in saved_rows.rows_by_step(tools).items():
        slots, guided = SLOTS[step - 1], GUIDED[step - 1]
        assert len(rows) == GROUP * PROMPTS
        for row in rows:
            assert row["source"] == ("explorer" if row["session"] < slots else "learner")
            assert bool(row["guidance"]) == (slots <= row["session"] < slots + guided)
        asked = [row for row in rows if TOOL_TEXT in row["response"]]
        assert len(asked) > GROUP * PROMPTS / 2
        assert {row["source"] for row in asked} == {row["source"] for row in rows}
        assert any(row["guidance"] for row in asked) == (guided > 0)


def test_the_tools_words_are_in_no_loss(tools, saved_rows) -> None:
    """Guided rows: what is no guidance and in no loss is the tool's, counted by hand from its text."""
    for step, rows in saved_rows.rows_by_step(tools).items():
        metrics = tools.steps()[step]
        assert metrics["s2l/guidance/guided_rows"] == GUIDED[step - 1] * PROMPTS
        asked = sum(TOOL_TEXT in row["response"] for row in rows if row["guidance"])
        left_out = metrics["s2l/guidance/continuation_tokens"] - metrics["s2l/guidance/continuation_tokens_in_loss"]
        assert left_out == asked * TOOL_TOKENS
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        assert bool(metrics["s2l/guidance/prefix_tokens"]) == bool(GUIDED[step - 1])
        assert asked > 0 or not GUIDED[step - 1]


def test_adapters_reach_the_sampler_and_the_reference_is_without_them(tools) -> None:
    """After each update vLLM samples with the adapter that was just trained; the reference is the model without it."""
    for step in STEPS:
        metrics = tools.steps()[step]
        if SLOTS[step - 1]:
            assert metrics["s2l/source/explorer/kl_sampler_learner_k3"] > 0.05
        if SLOTS[step - 1] < GROUP:
            assert metrics["s2l/source/learner/kl_sampler_learner_k3"] < 1e-5
    assert all(tools.steps()[step]["actor/kl_loss"] > 0 for step in STEPS), "two updates a step: never at zero"


def test_later_updates_are_off_policy_and_use_the_same_beta(tools) -> None:
    for step in STEPS:
        metrics = tools.steps()[step]
        source = "explorer" if SLOTS[step - 1] else "learner"
        assert metrics[f"s2l/source/{source}/ppo_ratio_mean"] != pytest.approx(1, abs=1e-6)
        expected = BETA * (math.tanh(metrics["s2l/kl/accuracy"]) + 1) / 2
        assert metrics["s2l/kl/beta"] == pytest.approx(expected, abs=1e-9)
        assert metrics["s2l/kl/beta_reported_low"] == metrics["s2l/kl/beta_reported_high"] == metrics["s2l/kl/beta"]


def test_the_loss_is_the_sum_of_its_terms(tools) -> None:
    for metrics in tools.steps().values():
        terms = metrics["actor/pg_loss"] - 0.01 * metrics["actor/entropy_loss"]
        terms += metrics["s2l/kl/beta"] * metrics["actor/kl_loss"]
        assert metrics["actor/loss"] == pytest.approx(terms, rel=1e-4, abs=1e-7)


def test_advantages_are_rewards_less_the_groups_mean(tools, saved_rows) -> None:
    for step, rows in saved_rows.rows_by_step(tools).items():
        means = group_means(rows)
        advantages = [row["score"] - means[row["uid"]] for row in rows]
        metrics = tools.steps()[step]
        assert metrics["critic/advantages/max"] == pytest.approx(max(advantages), abs=1e-6)
        assert metrics["critic/advantages/min"] == pytest.approx(min(advantages), abs=1e-6)


# ---- FSDP1 against FSDP2 ------------------------------------------------------------------------------------------

COMPARED = (
    "critic/score/mean",
    "critic/advantages/max",
    "response_length/mean",
    "actor/loss",
    "actor/kl_loss",
    "actor/pg_loss",
    "actor/entropy",
    "actor/grad_norm",
    "s2l/kl/beta",
    "s2l/guidance/length",
    "s2l/guidance/prefix_tokens",
    "s2l/guidance/continuation_tokens_in_loss",
    "s2l/curriculum/pass_rate_mean",
    "s2l/source/explorer/rows",
    "s2l/source/learner/rows",
)


@pytest.mark.long
@pytest.mark.parametrize("metric", COMPARED)
def test_fsdp1_packed_gives_the_numbers_of_fsdp2_padded(fsdp1, fsdp2, metric: str) -> None:
    for step in STEPS:
        assert fsdp1.steps()[step][metric] == pytest.approx(fsdp2.steps()[step][metric], rel=2e-4, abs=2e-6), step


def test_the_local_loop_computes_the_loss_and_the_gradient_of_the_workers(
    fsdp2, small_run, toy_dir, saved_rows
) -> None:
    """All methods together, three updates, on the same rows."""
    from s2l_ext.launch.compose import compose_config
    from s2l_ext.studies.local.loop import LocalLoop
    from s2l_ext.studies.local.run import read_prompts

    known = [one for one in small_run if "agent_loop" not in one]
    cfg = compose_config(RECIPE, [f"toy_dir={toy_dir}", *known, *METHODS])
    found = saved_rows.replayed(LocalLoop(cfg, read_prompts(cfg.data.train_files, -1, 0)), fsdp2)
    assert sorted(found) == list(STEPS)
    for step, own in found.items():
        for name in ("actor/kl_loss", "actor/entropy_loss", "actor/grad_norm", "actor/pg_loss", "s2l/kl/beta"):
            assert own[name] == pytest.approx(fsdp2.steps()[step][name], rel=1e-5, abs=1e-6), (step, name)
        assert own["s2l/guidance/length"] == fsdp2.steps()[step]["s2l/guidance/length"]


@pytest.mark.long
def test_the_two_engines_really_ran(fsdp1, fsdp2) -> None:
    for run, strategy, packed in ((fsdp1, "fsdp", "true"), (fsdp2, "fsdp2", "false")):
        settings = (run.folder / "s2l_config.yaml").read_text()
        assert f"    strategy: {strategy}\n" in settings and f"    use_remove_padding: {packed}\n" in settings
    assert sorted(fsdp1.steps()) == sorted(fsdp2.steps()) == list(STEPS)
    assert all(metrics["actor/grad_norm"] > 1e-3 for metrics in fsdp2.steps().values())


def test_every_response_weighs_the_same(fsdp2, saved_rows) -> None:
    """At ratio 1 and without the standard deviation, the mean over responses of -advantage is 0 by construction; the
    mean over tokens is not, because right and wrong responses differ in length."""
    over_tokens = []
    for step, rows in saved_rows.rows_by_step(fsdp2).items():
        means = group_means(rows)
        assert len(means) == 4, "the whole step is logged"
        weighed = [(row["score"] - means[row["uid"]], len(row["response"])) for row in rows]
        over_tokens.append(-sum(value * length for value, length in weighed) / sum(length for _, length in weighed))
        assert fsdp2.steps()[step]["actor/pg_loss"] == pytest.approx(0, abs=1e-6)
    assert max(map(abs, over_tokens)) > 0.01
