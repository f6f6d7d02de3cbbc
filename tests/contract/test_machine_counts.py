"""What a step and an entry point cost, in counts that are the same on every machine: seconds are `make bench`'s."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transfer_queue as tq
from verl.trainer.ppo.v1.trainer_base import PPOTrainer

from s2l_ext.methods.curriculum.gaussian import GaussianCurriculum
from s2l_ext.methods.curriculum.sampler import CurriculumSampler
from s2l_ext.training.pending_prompts import PromptPlan

pytestmark = pytest.mark.contract

ALL_ON = (
    "s2l.explorer.baseline=per_source",
    "s2l.explorer.correction=truncated_is",
    "+s2l.guidance={alpha: 0.25}",
    "+s2l.kl={type: accuracy}",
    "+s2l.curriculum={type: gaussian}",
)
GROUP, PROMPTS, TOKENS = 4, 6, 50
OF_ROWS = {"extra_fields", "s2l_source", "metrics", "s2l_prefix_len"}
"""Columns that are read of every row: none has tokens."""
KINDS = ("explorer", "guided", "plain")
SUMS = (
    "tokens",
    "read",
    "reward",
    "advantage",
    "advantage_squared",
    "ratio",
    "clipped",
    "weight",
    "is_weight",
    "is_clamped",
)
SUMS += ("sampled", "is_ratio", "is_ratio_max", "k3", "prefix_in_loss", "continuation", "continuation_in_loss")


def row(session: int) -> dict:
    tokens = [0.0] * TOKENS
    return {
        **dict.fromkeys(("responses", "prompts", "response_mask", "rm_scores", "advantages"), tokens),
        **dict.fromkeys(("old_log_probs", "rollout_log_probs"), tokens),
        "s2l_source": "explorer" if session == 0 else "learner",
        "s2l_prefix_len": 3 if session == 1 else 0,
        "metrics": {"generate_sequences": 1.0},
        "extra_fields": {"reward_extra_info": {"acc": 1.0, "score": 1.0}},
        "reward_model": {"ground_truth": "1"},
        "uid": "p",
    }


class Tokenizer:
    @staticmethod
    def decode(ids: list, skip_special_tokens: bool) -> str:
        return ""


class Kept:
    """Where lines are written."""

    def write(self, *_: object) -> None: ...

    append = write


@pytest.fixture
def updates(monkeypatch):
    """verl's part of a step left out; the workers report sums."""

    def update(self, batch, metrics):
        beta = batch.extra_info["s2l_kl_beta"]
        metrics |= {"actor/s2l_kl_beta_min": beta, "actor/s2l_kl_beta_max": beta, "actor/kl_loss": 0.0}
        sums = {f"actor/s2l_sum/{kind}/{name}": 1.0 for kind in KINDS for name in SUMS}
        metrics |= {**sums, "actor/s2l_sum/rows": float(len(batch))}
        return batch

    monkeypatch.setattr(PPOTrainer, "_compute_advantage", lambda self, batch, metrics: batch)
    monkeypatch.setattr(PPOTrainer, "_update_actor", update)
    monkeypatch.setattr(PPOTrainer, "_compute_metrics", lambda *_: None)


def test_a_step_with_every_method_reads_the_queue_twice_and_fetches_no_tokens_but_those_it_shows(
    queue, trainer_of, updates, monkeypatch
) -> None:
    reads: list[tuple[set[str], int]] = []

    def counted(**given):
        reads.append((set(given["select_fields"]), len(given["keys"])))
        return queue.get(**given)

    monkeypatch.setattr(tq, "kv_batch_get", counted)
    queue.rows = {f"p{prompt}_{number}_0": row(number) for prompt in range(PROMPTS) for number in range(GROUP)}
    trainer = trainer_of("s2l_po/toy", *ALL_ON, "actor_rollout_ref.actor.use_kl_loss=true")
    trainer.config.actor_rollout_ref.rollout.n = GROUP
    trainer.total_training_steps, trainer.steps_per_epoch, trainer.tokenizer = 9, 3, Tokenizer()
    trainer.run_log = trainer.sample_log = Kept()
    for method in trainer.methods:
        if method.block == "curriculum":
            method.sampler = CurriculumSampler(GaussianCurriculum(PROMPTS), PROMPTS, PROMPTS)
        elif method.block != "explorer":
            method.start(trainer)
    trainer.step_plans = {f"p{number}": PromptPlan(1, slots=1, guided=1, index=number) for number in range(PROMPTS)}
    metrics: dict[str, float] = {}
    batch = trainer._compute_advantage(queue.batch(), metrics)
    batch = trainer._update_actor(batch, metrics)
    trainer._compute_metrics(batch, metrics, {}, 1, 0)
    assert metrics["s2l/source/explorer/is_weight_mean"] == 1.0 and "s2l/guidance/prefix_tokens" in metrics
    (rows, of_rows), (shown, of_shown) = reads
    assert (rows, of_rows) == (OF_ROWS, PROMPTS * GROUP)
    assert {"responses", "prompts"} <= shown and of_shown == GROUP, "the one group that samples.jsonl shows"


HEAVY = ("torch", "numpy", "ray", "verl", "vllm", "transformers", "hydra", "tensordict", "pyarrow", "matplotlib")
ENTRIES = {
    "s2l_ext.cli": (40, set()),
    "s2l_ext.plugin": (300, set()),
    "s2l_ext.training.batch_fields": (6, set()),
    "s2l_ext.utils.processes": (80, set()),
    "s2l_ext.sandbox.worker": (90, set()),
    "s2l_ext.rewards.math_child": (30, set()),
}
"""Entry point -> modules that it may import beside Python's own start, and which of the heavy ones."""


@pytest.mark.parametrize("entry", ENTRIES)
def test_an_entry_point_imports_no_more_than_it_did(entry: str) -> None:
    """Counted in a process of its own."""
    code = f"import sys; before = set(sys.modules); import {entry}; print(*(set(sys.modules) - before))"
    root = Path(__file__).parents[2]
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(root)}
    ran = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    found = set(ran.stdout.split())
    most, heavy = ENTRIES[entry]
    assert found & set(HEAVY) == heavy
    assert len(found) <= most, f"{len(found)} modules"
