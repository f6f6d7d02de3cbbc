"""Stored explorer rollouts with what verl's users combine: both asynchronous modes, LoRA, a kill and a resume, FSDP1,
several updates, filtered groups, rejection, another reward manager, and every aggregation of the loss."""

import json
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
from transformers import AutoTokenizer

from s2l_ext.methods.explorer.schedule import LinearAnnealing
from s2l_ext.store.reader import RolloutStore

pytestmark = pytest.mark.long

PROMPTS, GROUP, MIX_STEPS, SCALE = 4, 4, 3, 64
COMMON = (
    "data.train_files=${toy_dir}/val.parquet",  # 256 prompts, so that the store is drawn soon
    f"s2l.explorer.mix_steps={MIX_STEPS}",
    "s2l.rollout.log_groups=8",
    "actor_rollout_ref.rollout.calculate_log_probs=true",
)
ASYNC = "actor_rollout_ref.rollout.agent.default_agent_loop=single_turn_agent"
AGGREGATION = "actor_rollout_ref.actor.loss_agg_mode="
COLOCATED = (
    *COMMON,
    ASYNC,
    "trainer.v1.trainer_mode=colocate_async",
    "trainer.v1.colocate_async.num_warmup_batches=1.5",
    "actor_rollout_ref.model.lora_rank=8",
    f"{AGGREGATION}seq-mean-token-mean",
    "trainer.total_training_steps=4",
    "trainer.save_freq=1",
    "trainer.max_actor_ckpt_to_keep=2",
)
SEPARATE = (
    *COMMON,
    ASYNC,
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.hybrid_engine=false",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=s2l_cpu",
    "ray_kwargs.ray_init.num_gpus=2",
    f"{AGGREGATION}seq-mean-token-sum-norm",
    f"actor_rollout_ref.actor.loss_scale_factor={SCALE}",
    "trainer.total_training_steps=4",
)
UPDATES = (
    *COMMON,
    "data.train_batch_size=8",
    "actor_rollout_ref.actor.ppo_epochs=2",
    "actor_rollout_ref.actor.strategy=fsdp",
    "actor_rollout_ref.ref.strategy=fsdp",
    "algorithm.norm_adv_by_std_in_grpo=false",
    f"{AGGREGATION}token-sum",
    "actor_rollout_ref.actor.optim.lr=1e-6",  # later updates are then at a ratio of about 1, but not at 1
    "trainer.total_training_steps=2",
)
FILTERED = (
    *COMMON,
    "algorithm.filter_groups.enable=true",
    "algorithm.filter_groups.metric=acc",
    "algorithm.rollout_correction.rollout_rs=seq_mean_k1",
    "algorithm.rollout_correction.rollout_rs_threshold=0.5_2.0",
    "reward.reward_manager.name=dapo",
    "++reward.reward_kwargs.max_resp_len=64",
    "++reward.reward_kwargs.overlong_buffer_cfg={enable: true, len: 48, penalty_factor: 1.0, log: false}",
    f"{AGGREGATION}token-mean",
    "trainer.total_training_steps=3",
)
RECIPE, STORE = "s2l_po/toy_offline", "s2l.explorer.store=STORE"
LAUNCHES = [
    {
        "fixture": "colocated",
        "recipe": RECIPE,
        "overrides": (*COLOCATED, STORE),
        "shown_by": "test_colocated_steps_train_on_the_stored_rows_of_the_step_that_drew_them",
        "rows": {
            "LoRA, `model.lora_rank`": "test_the_adapter_that_is_trained_is_the_one_that_samples",
            "resume after kill -9": "test_no_stored_row_is_taken_twice_through_the_kill",
        },
    },
    {
        "fixture": "separate",
        "recipe": RECIPE,
        "overrides": (*SEPARATE, STORE),
        "shown_by": "test_separate_steps_train_on_the_stored_rows_of_the_step_that_drew_them",
    },
    {
        "fixture": "updates",
        "recipe": RECIPE,
        "overrides": (*UPDATES, STORE),
        "shown_by": "test_stored_rows_are_trained_on_four_times_a_step",
    },
    {
        "fixture": "filtered",
        "recipe": RECIPE,
        "overrides": (*FILTERED, STORE),
        "shown_by": "test_every_group_of_stored_rows_trained_on_is_mixed",
    },
]


@pytest.fixture(scope="module")
def store(toy_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "explorer"
    words = f"--model {toy_dir}/models/small --data {toy_dir}/val.parquet --n {GROUP} --max-tokens 64 --out {folder}"
    subprocess.run([sys.executable, "-m", "s2l_ext.cli", "explore", *words.split()], check=True, timeout=600)
    return folder


@pytest.fixture(scope="module")
def colocated(kill_and_resume, small_run, store):
    """Killed after step 2, with prompts in flight, and continued by the same command."""
    return kill_and_resume(RECIPE, *small_run, *COLOCATED, f"s2l.explorer.store={store}")


@pytest.fixture(scope="module")
def separate(launch, small_run, store):
    return launch(RECIPE, *small_run, *SEPARATE, f"s2l.explorer.store={store}").wait()


@pytest.fixture(scope="module")
def updates(launch, small_run, store):
    return launch(RECIPE, *small_run, *UPDATES, f"s2l.explorer.store={store}").wait()


@pytest.fixture(scope="module")
def filtered(launch, small_run, store):
    return launch(RECIPE, *small_run, *FILTERED, f"s2l.explorer.store={store}").wait()


@pytest.fixture(scope="module")
def drawn(store, toy_dir):
    """Texts of the stored responses by the text of their prompt, both as ``samples.jsonl`` writes them."""
    toys = AutoTokenizer.from_pretrained(toy_dir / "models" / "small")
    found = defaultdict(Counter)
    for one in RolloutStore(store).every_rollout():
        prompt, response = (toys.decode(ids, skip_special_tokens=True) for ids in (one.prompt_ids, one.token_ids))
        found[prompt][response] += 1
    return found


def require_stored_rows(run, saved_rows, drawn, steps: int, prompts: int = PROMPTS) -> dict[int, list[dict]]:
    """Every explorer row is the store's, each response no oftener than there; the plan is of a step within the lag."""
    found, taken, schedule = saved_rows.rows_by_step(run), defaultdict(Counter), LinearAnnealing(MIX_STEPS, GROUP)
    assert sorted(found) == sorted(run.steps()) == list(range(1, steps + 1))
    for step, rows in found.items():
        metrics = run.steps()[step]
        allowed = {
            schedule.slots(step - lag) for lag in range(min(step, int(metrics.get("s2l/async/staleness_max", 0)) + 1))
        }
        for group in saved_rows.groups(rows).values():
            explorers = [row["session"] for row in group if row["source"] == "explorer"]
            assert len(group) == GROUP and explorers == list(range(len(explorers))) and len(explorers) in allowed
        explorers = [row for row in rows if row["source"] == "explorer"]
        for row in explorers:
            taken[row["prompt"]][row["response"]] += 1
        assert len(rows) == prompts * GROUP and metrics["s2l/explorer/reused_rows"] == 0
        assert metrics["s2l/source/explorer/rows"] == metrics["s2l/explorer/stored_rows"] == len(explorers)
    assert sum(map(Counter.total, taken.values())) > 2 * prompts
    assert all(counts <= drawn[prompt] for prompt, counts in taken.items())
    return found


def require_pg_loss(run, saved_rows, found: dict[int, list[dict]], mode: str) -> None:
    for step, rows in found.items():
        expected = saved_rows.policy_loss(rows, mode, factor=SCALE)
        assert run.steps()[step]["actor/pg_loss"] == pytest.approx(expected, rel=1e-4, abs=1e-6), step
    assert max(abs(saved_rows.policy_loss(rows, "token-mean")) for rows in found.values()) > 0.01


# ---- asynchronous modes -------------------------------------------------------------------------------------------


def test_colocated_steps_train_on_the_stored_rows_of_the_step_that_drew_them(colocated, saved_rows, drawn) -> None:
    _, run = colocated
    found = require_stored_rows(run, saved_rows, drawn, steps=4)
    require_pg_loss(run, saved_rows, found, "seq-mean-token-mean")
    assert max(metrics["s2l/async/staleness_max"] for metrics in run.steps().values()) >= 1
    assert len({uid for rows in found.values() for uid in saved_rows.groups(rows)}) == 4 * PROMPTS


def test_the_adapter_that_is_trained_is_the_one_that_samples(colocated) -> None:
    _, run = colocated
    meta = json.loads((run.folder / "global_step_4" / "actor" / "lora_train_meta.json").read_text())
    assert meta["r"] == 8 and all(metrics["actor/grad_norm"] > 0 for metrics in run.steps().values())
    ratios = [metrics.get("s2l/source/learner/kl_sampler_learner_k3") for metrics in run.steps().values()]
    assert 0 < max(value for value in ratios if value is not None) < 0.05


def test_no_stored_row_is_taken_twice_through_the_kill(colocated) -> None:
    """What the store gave is what was trained on and what the prompts in flight have."""
    before, run = colocated
    assert set(before) >= {1, 2}
    state = json.loads((run.folder / "global_step_4" / "s2l_state.json").read_text())["controllers"]
    used, plans = state["stored_rows"]["used"], state["in_flight"]["plans"].values()
    trained = sum(metrics["s2l/explorer/stored_rows"] for metrics in run.steps().values())
    assert sum(used.values()) == trained + sum(plan["stored"] for plan in plans)
    assert max(used.values()) == GROUP and len(plans) == 1.5 * PROMPTS


def test_separate_steps_train_on_the_stored_rows_of_the_step_that_drew_them(separate, saved_rows, drawn) -> None:
    found = require_stored_rows(separate, saved_rows, drawn, steps=4)
    require_pg_loss(separate, saved_rows, found, "seq-mean-token-sum-norm")
    assert max(metrics["s2l/async/staleness_max"] for metrics in separate.steps().values()) >= 1
    assert all(metrics["timing_s/update_weights"] > 0 for metrics in separate.steps().values())


# ---- synchronous --------------------------------------------------------------------------------------------------


def test_stored_rows_are_trained_on_four_times_a_step(updates, saved_rows, drawn) -> None:
    """Two epochs of two mini-batches: an update's loss is the sum over its half of the rows, at a ratio of about 1."""
    found = require_stored_rows(updates, saved_rows, drawn, steps=2, prompts=8)
    assert "    strategy: fsdp\n" in (updates.folder / "s2l_config.yaml").read_text()
    for step, rows in found.items():
        metrics = updates.steps()[step]
        assert metrics["actor/pg_loss"] == pytest.approx(
            saved_rows.policy_loss(rows, "token-sum", by_std=False) / 2, rel=0.02
        )
        assert metrics["critic/advantages/max"] == pytest.approx(
            max(saved_rows.advantages(rows, by_std=False)), abs=1e-6
        )
        assert 1e-7 < abs(metrics["s2l/source/explorer/ppo_ratio_mean"] - 1) < 0.01, "later updates are off-policy"


def test_every_group_of_stored_rows_trained_on_is_mixed(filtered, saved_rows, drawn) -> None:
    """Rejection is computed over the rows of both models; the reward is the manager's, less for a long response."""
    found = require_stored_rows(filtered, saved_rows, drawn, steps=3)
    require_pg_loss(filtered, saved_rows, found, "token-mean")
    for step, rows in found.items():
        metrics = filtered.steps()[step]
        assert all({row["acc"] for row in group} == {0, 1} for group in saved_rows.groups(rows).values())
        assert metrics["rollout_corr/rollout_rs_masked_fraction"] == 0
        for row in rows:
            assert row["score"] == pytest.approx(row["acc"] - max(0, saved_rows.tokens(row) - 16) / 48, abs=1e-6)
    assert sum(data.get("training/filter_groups/evicted_samples", 0) for data in filtered.steps().values()) > 0
