"""S2L-PO and G2RPO-A on the real stack, in one run: who samples what, which rows are guided and by which tokens, what
the length does, what is logged.

The explorer holds 4, 3, 2, 0, ... 0 of four sessions, two of those it leaves are guided: groups of the explorer alone,
of all sorts, and from step 4 on of G2RPO-A alone.

Then once more with the explorer's rollouts from a store: for the same rows the same batches and the same updates.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from s2l_ext.data.prompts import parquet_table, prompt_ids
from s2l_ext.data.tokenizers import digest, snapshot
from s2l_ext.data.traces import answer_start
from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.methods.guidance.length import AdaptiveGuidance
from s2l_ext.store.reader import Rollout, RolloutStore
from s2l_ext.store.writer import StoreWriter

MIX_STEPS, GROUP, PROMPTS, TOTAL = 4, 4, 8, 8
STEPS = range(1, TOTAL + 1)
SCHEDULE = [LinearAnnealing(MIX_STEPS, GROUP).slots(step) for step in STEPS]
GUIDED = [min(2, GROUP - slots) for slots in SCHEDULE]  # round(alpha G) of what the explorer leaves
ALONE = [step for step, slots in zip(STEPS, SCHEDULE, strict=True) if slots == 0]
INITIAL, MOST, CONTINUATION, RESPONSE = 40, 48, 16, 64
OVERRIDES = (
    f"data.train_batch_size={PROMPTS}",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
    f"s2l.explorer.mix_steps={MIX_STEPS}",
    "s2l.guidance.alpha=0.5",
    f"s2l.guidance.length.initial={INITIAL}",
    f"s2l.guidance.length.max_length={MOST}",
    f"s2l.guidance.min_continuation={CONTINUATION}",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
    "actor_rollout_ref.model.use_remove_padding=true",
    "actor_rollout_ref.actor.use_dynamic_bsz=true",
    "actor_rollout_ref.actor.ppo_max_token_len_per_gpu=600",
    "actor_rollout_ref.rollout.log_prob_max_token_len_per_gpu=600",
    "actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum",
    "actor_rollout_ref.actor.clip_ratio_high=0.28",
    "actor_rollout_ref.actor.entropy_coeff=0.01",
)
RECIPE = "combined/g2rpo_a_s2l"
OFFLINE = ("s2l.explorer.source=offline", "~s2l.explorer.model_path", "s2l.explorer.on_exhausted=learner")
LAUNCHES = [
    {
        "fixture": "run",
        "recipe": RECIPE,
        "overrides": OVERRIDES,
        "shown_by": "test_old_log_probs_are_the_learners_so_the_ratio_starts_at_one",
    },
    {
        "fixture": "offline",
        "recipe": RECIPE,
        "overrides": (*OVERRIDES, *OFFLINE, "s2l.explorer.store=STORE"),
        "shown_by": "test_every_number_of_every_step_is_that_of_the_live_run",
    },
]


@pytest.fixture(scope="module")
def overrides(small_run, tmp_path_factory) -> tuple[str, ...]:
    return (*small_run, *OVERRIDES, f"trainer.rollout_data_dir={tmp_path_factory.mktemp('rollouts')}")


@pytest.fixture(scope="module")
def run(launch, overrides):
    started = launch(RECIPE, *overrides)
    started.wait_for(started.steps)
    started.look_who_listens()
    return started.wait()


@pytest.fixture(scope="module")
def rollouts(overrides, run) -> dict[int, list[dict]]:
    """Rows as verl dumps them, by step: text of prompt and response, score, and the key {uid}_{session}_{output}."""
    folder = Path(overrides[-1].split("=", 1)[1])
    return {int(path.stem): [json.loads(line) for line in path.read_text().splitlines()] for path in folder.iterdir()}


# ---- files and checkpoints (kills: test_chaos.py) ------------------------------------------------------------------


def test_its_servers_listened_at_loopback_only(run) -> None:
    """But for torch's rendezvous of a process group, which has no setting: docs/security.md."""
    wide = {(name, host) for name, host in run.listened if host.removeprefix("::ffff:") != "127.0.0.1"}
    assert len(run.listened) > 8
    assert [name for name, _ in wide if not name.startswith(("ray::WorkerDict", "ray::Checkpoint"))] == []


def test_metrics_file_has_every_step_once(run) -> None:
    steps = [line["step"] for line in run.lines() if "training/global_step" in line["data"]]
    assert steps == list(STEPS)


def test_a_kill_between_checkpoint_and_metrics_would_lose_nothing(run) -> None:
    """verl logs a step after its checkpoint and validation; what was held at the checkpoint says the same."""
    held = json.loads((run.folder / ".metrics.jsonl.held").read_text())
    logged = run.steps()[held["step"]]
    assert held["step"] == TOTAL
    assert set(logged) - set(held["data"]) <= {key for key in logged if key.startswith(("timing_", "perf/"))}
    for key, value in held["data"].items():
        if not key.startswith(("timing_", "perf/")) or key == "perf/total_num_tokens":
            assert logged[key] == value, key


def test_state_lies_beside_the_checkpoint(run) -> None:
    state = json.loads((run.folder / f"global_step_{TOTAL}" / "s2l_state.json").read_text())
    expected = {"explorer.model": "small", "explorer.mix_steps": MIX_STEPS, "group_size": GROUP}
    assert expected.items() <= state["fingerprint"].items()
    assert state["controllers"]["guidance"]["length"] == run.steps()[TOTAL]["s2l/guidance/next_length"]


def test_another_schedule_is_refused_on_resume_before_training(run, launch, overrides) -> None:
    changed = [o.replace(f"mix_steps={MIX_STEPS}", "mix_steps=3") for o in overrides]
    refused = launch("combined/g2rpo_a_s2l", *changed, folder=run.folder)
    assert refused.process.wait(300) != 0
    refused.end()
    assert "explorer.mix_steps: checkpoint 4, this run 3" in refused.log


def test_composed_configuration_is_kept(run) -> None:
    assert "mix_steps: 4" in Path(run.folder, "s2l_config.yaml").read_text()


def test_one_group_of_every_step_can_be_read(run, rollouts) -> None:
    lines = [json.loads(line) for line in (run.folder / "samples.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(STEPS)
    for line in lines:
        step, rows = line["step"], line["rows"]
        dumped = {row["uid"]: row for row in rollouts[step]}
        assert [row["session"] for row in rows] == list(range(GROUP))
        assert [row["source"] for row in rows] == ["explorer"] * SCHEDULE[step - 1] + ["learner"] * (
            GROUP - SCHEDULE[step - 1]
        )
        for row in rows:
            seen = dumped[f"{row['uid']}_{row['session']}_0"]
            assert row["guidance"] + row["response"] == seen["output"] and row["score"] == row["acc"] == seen["score"]
            assert bool(row["guidance"]) == is_guided(seen, step)


# ---- S2L-PO ----------------------------------------------------------------------------------------------------------


def test_first_slots_of_every_group_are_the_explorers(run) -> None:
    for step, slots in enumerate(SCHEDULE, start=1):
        metrics = run.steps()[step]
        assert metrics["s2l/source/explorer/rows"] == slots * PROMPTS
        assert metrics["s2l/source/learner/rows"] == (GROUP - slots) * PROMPTS
        assert metrics["s2l/explorer/fraction"] == pytest.approx(slots / GROUP)


def test_explorer_rows_really_come_from_another_model(run) -> None:
    """The divergence between sampler and learner is large on explorer rows and about nothing on learner rows."""
    for metrics in run.steps().values():
        if metrics["s2l/source/explorer/rows"]:
            assert metrics["s2l/source/explorer/kl_sampler_learner_k3"] > 1e-4
        if metrics["s2l/source/learner/rows"]:
            assert metrics["s2l/source/learner/kl_sampler_learner_k3"] < 1e-6


def test_old_log_probs_are_the_learners_so_the_ratio_starts_at_one(run) -> None:
    for metrics in run.steps().values():
        for source in ("explorer", "learner"):
            if metrics[f"s2l/source/{source}/rows"]:
                assert metrics[f"s2l/source/{source}/ppo_ratio_mean"] == pytest.approx(1.0, abs=1e-3)


def test_one_baseline_over_the_union(run) -> None:
    """Advantages cancel over the whole group, not inside each source."""
    mixed = [m for m, slots in zip(run.steps().values(), SCHEDULE, strict=True) if 0 < slots < GROUP]
    for metrics in mixed:
        total = sum(
            metrics[f"s2l/source/{source}/advantage_mean"] * metrics[f"s2l/source/{source}/rows"]
            for source in ("explorer", "learner")
        )
        assert total == pytest.approx(0, abs=1e-3)


def test_servers_stop_when_the_schedule_reaches_zero(run) -> None:
    running = [run.steps()[step]["s2l/explorer/num_gpus"] for step in STEPS]
    expected = [int(LinearAnnealing(MIX_STEPS, GROUP).slots(step + 1) > 0) for step in STEPS]
    assert running == expected
    assert "explorer servers stopped, 1 of their 1 GPUs released" in run.log


def test_no_session_failed(run) -> None:
    assert [run.steps()[step]["s2l/explorer/missing_rows"] for step in STEPS] == [0] * TOTAL


# ---- G2RPO-A ---------------------------------------------------------------------------------------------------------


def is_guided(row: dict, step: int) -> bool:
    """Guided sessions take what the explorer leaves."""
    return SCHEDULE[step - 1] <= int(row["uid"].rsplit("_", 2)[1]) < SCHEDULE[step - 1] + GUIDED[step - 1]


def test_exactly_round_alpha_g_rows_of_every_group_are_guided(run) -> None:
    assert GUIDED == [0, 1, 2, 2, 2, 2, 2, 2]
    for step, slots, guided in zip(STEPS, SCHEDULE, GUIDED, strict=True):
        metrics = run.steps()[step]
        assert metrics["s2l/guidance/guided_rows"] == PROMPTS * guided
        assert metrics["s2l/source/learner/rows"] == PROMPTS * (GROUP - slots)


def test_guided_responses_start_with_the_first_l_tokens_of_the_trace(run, rollouts, toy_dir) -> None:
    """A token of the toy is a character, so the text itself shows the cut; no answer is handed over."""
    table = parquet_table([toy_dir / "train_tier3.parquet"])
    by_question = {
        prompt[0]["content"]: (extra["trace"], truth["ground_truth"])
        for prompt, extra, truth in zip(*map(table.read, ("prompt", "extra_info", "reward_model")), strict=True)
    }
    for step, rows in rollouts.items():
        length = int(run.steps()[step]["s2l/guidance/length"])
        guided = [row for row in rows if is_guided(row, step)]
        assert len(guided) == PROMPTS * GUIDED[step - 1]
        for row in guided:
            trace, answer = next(found for question, found in by_question.items() if f"\n{question}" in row["input"])
            guidance = trace[: answer_start(trace, answer)][:length]
            assert len(guidance) == min(length, answer_start(trace, answer))
            assert row["output"].startswith(guidance)


def test_unguided_rows_write_their_own_text(rollouts) -> None:
    own = [row["output"] for step, rows in rollouts.items() for row in rows if not is_guided(row, step)]
    assert len(own) == PROMPTS * (TOTAL * GROUP - sum(GUIDED)) and len(set(own)) > len(own) / 4


def test_guidance_tokens_are_masked_and_all_others_are_not(run) -> None:
    assert run.steps()[1]["s2l/guidance/prefix_tokens"] == 0
    for step in STEPS[1:]:
        metrics = run.steps()[step]
        placed = metrics["s2l/guidance/applied_mean"] * PROMPTS * GUIDED[step - 1]
        assert metrics["s2l/guidance/prefix_tokens"] == pytest.approx(placed)
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        assert metrics["s2l/guidance/continuation_tokens"] == metrics["s2l/guidance/continuation_tokens_in_loss"] > 0


def test_masked_tokens_are_in_no_statistic(run) -> None:
    """Sampler and learner agree on every token that counts; the placed tokens would show at once."""
    for step in STEPS[1:]:
        metrics = run.steps()[step]
        counted = sum(metrics.get(f"s2l/source/{source}/tokens", 0) for source in ("explorer", "learner"))
        assert metrics["s2l/source/learner/kl_sampler_learner_k3"] < 1e-6
        every = metrics["response_length/mean"] * PROMPTS * GROUP
        assert counted + metrics["s2l/guidance/prefix_tokens"] == pytest.approx(every), "sampled, or placed"


def test_length_follows_the_logged_accuracies_by_the_rule(run) -> None:
    rule = AdaptiveGuidance(initial=INITIAL, max_length=MOST)
    for step in STEPS:
        metrics = run.steps()[step]
        assert metrics["s2l/guidance/length"] == rule.length
        if "s2l/guidance/accuracy" in metrics:
            rule.observe(metrics["s2l/guidance/accuracy"], used_length=metrics["s2l/guidance/length"])
        assert metrics["s2l/guidance/next_length"] == rule.length
    lengths = {run.steps()[step]["s2l/guidance/length"] for step in run.steps()}
    assert len(lengths) > 1, "a length that never moves cannot show that it follows"


def test_accuracy_of_the_rule_is_that_of_the_learners_rows(run) -> None:
    """Half of them guided, as when the explorer has gone; before step 4 none is unguided."""
    for step in STEPS:
        metrics = run.steps()[step]
        assert ("s2l/guidance/accuracy" in metrics) == (step in ALONE) == bool(metrics["s2l/guidance/estimate_rows"])
        if step in ALONE:
            assert metrics["s2l/guidance/accuracy"] == pytest.approx(metrics["s2l/source/learner/acc_mean"])


def test_spread_of_advantages_is_logged_by_source_and_by_guidance(run) -> None:
    for metrics in run.steps().values():
        for source in ("explorer", "learner"):
            assert (f"s2l/source/{source}/advantage_std" in metrics) == (metrics[f"s2l/source/{source}/rows"] > 0)
        assert ("s2l/guidance/advantage_std_guided" in metrics) == (metrics["s2l/guidance/guided_rows"] > 0)
    alone = run.steps()[ALONE[-1]]
    spread = [alone[f"s2l/guidance/advantage_std_{kind}"] for kind in ("guided", "unguided")]
    assert all(0 < value < 3 for value in spread)


def test_guided_groups_have_a_learning_signal_where_unguided_rows_have_none(run) -> None:
    guided = np.mean([run.steps()[step]["s2l/guidance/groups_with_signal"] for step in ALONE])
    alone = np.mean([run.steps()[step]["s2l/guidance/unguided_groups_with_signal"] for step in ALONE])
    assert guided > alone + 0.05


# ---- the same with stored rollouts -----------------------------------------------------------------------------------

STORED_STEPS = 4
MACHINE = ("timing_", "perf/", "seconds")
OF_SERVERS = ("num_gpus", "explorer/restarts", "failed_requests", "fallback_rows_failure")
OWN = (*OF_SERVERS, "stored_rows", "reused_rows", "fallback_rows_exhausted")
"""What one has and the other has not: servers, or a store."""
OF_LOG_PROBS = ("/is_ratio_", "/kl_sampler_", "rollout_")
"""The dump that the store is made of has none; the learner's own differ in their last digits with vLLM's batches."""


@pytest.fixture(scope="module")
def store(rollouts, toy_dir, tmp_path_factory) -> Path:
    """Every explorer row of the live run, as ``s2l explore`` would have written it."""
    folder = tmp_path_factory.mktemp("store") / "explorer"
    toys = AutoTokenizer.from_pretrained(toy_dir / "models" / "small")
    table = parquet_table([toy_dir / "train_tier3.parquet"])
    chats = dict(zip(prompt_ids(table), table.read("prompt"), strict=True))
    rows = [row for step in STEPS for row in rollouts[step] if session(row) < SCHEDULE[step - 1]]
    stored = [as_rollout(row, toys, chats) for row in rows]
    fingerprint = {
        **dict.fromkeys(("model", "model_name", "dtype"), "live"),
        "data": ["live"],
        "reward": ["toy"],
        "tokenizer": digest(snapshot(str(toy_dir / "models" / "small"), "model")),
        "sampling": {"temperature": 0.7},
    }
    with StoreWriter(folder, fingerprint, GROUP, dict.fromkeys((one.prompt_id for one in stored), "")) as writer:
        for one in stored:
            writer.add(one)
        writer.finish()
    return folder


def session(row: dict) -> int:
    return int(row["uid"].rsplit("_", 2)[1])


def as_rollout(row: dict, toys, chats: dict[str, list[dict]]) -> Rollout:
    """A dumped row. A token of the toy is a character; a response shorter than the budget ended with the end token."""
    name, chat = next((name, chat) for name, chat in chats.items() if f"\n{chat[-1]['content']}" in row["input"])
    prompt = toys.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=False)
    text = toys.encode(row["output"], add_special_tokens=False)
    tokens = text if len(text) == RESPONSE else [*text, toys.eos_token_id]
    nothing, score = [0.0] * len(tokens), row["score"]
    return Rollout(name, session(row), 0, list(prompt), tokens, nothing, text is tokens, score, score, row["output"])


@pytest.fixture(scope="module")
def offline(launch, overrides, store):
    own = (*OFFLINE, f"s2l.explorer.store={store}", "ray_kwargs.ray_init.num_gpus=1")
    shorter = f"trainer.total_training_steps={STORED_STEPS}"
    return launch(RECIPE, *overrides[:-1], *own, shorter).wait()


def test_every_number_of_every_step_is_that_of_the_live_run(run, offline) -> None:
    for step in range(1, STORED_STEPS + 1):
        here, there = offline.steps()[step], run.steps()[step]
        left_out = [key for key in there if any(word in key for word in (*MACHINE, *OF_LOG_PROBS)) or key.endswith(OWN)]
        compared = there.keys() - set(left_out)
        assert {"actor/grad_norm", "actor/pg_loss", "critic/advantages/mean", "s2l/guidance/length"} <= compared
        assert {key: here.get(key) for key in compared} == {key: there[key] for key in compared}, f"step {step}"


def test_what_came_from_the_store_is_counted(offline, store) -> None:
    counts = RolloutStore(store).counts()
    assert sorted(counts.values()) == sorted(slots for slots in SCHEDULE for _ in range(PROMPTS) if slots)
    for step, slots in enumerate(SCHEDULE[:STORED_STEPS], 1):
        metrics = offline.steps()[step]
        assert metrics["s2l/explorer/stored_rows"] == metrics["s2l/source/explorer/rows"] == slots * PROMPTS
        assert metrics["s2l/explorer/reused_rows"] == metrics["s2l/explorer/fallback_rows_exhausted"] == 0
        assert metrics["s2l/explorer/num_gpus"] == 0
    state = json.loads((offline.folder / f"global_step_{STORED_STEPS}" / "s2l_state.json").read_text())
    assert state["controllers"]["stored_rows"]["used"] == counts
    assert state["fingerprint"]["explorer.store.sha256"] == RolloutStore(store).digest


def test_no_servers_but_the_learners_were_started(offline) -> None:
    assert "explorer servers stopped" not in offline.log
