"""Rows over workers and micro-batches, by hand: 16 prompts x 8 = 128 rows in one mini-batch."""

import pytest

from s2l_ext.compose import compose_config
from s2l_ext.config.row_split import check_row_split
from s2l_ext.errors import ConfigError

pytestmark = pytest.mark.slow

ACTOR, ROLLOUT, REF = (f"actor_rollout_ref.{part}" for part in ("actor", "rollout", "ref"))


def check(*overrides: str) -> None:
    check_row_split(compose_config("grpo/toy", overrides))


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu=128", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=128"),
        ("trainer.n_gpus_per_node=2",),  # 64 rows a worker
        ("data.train_batch_size=24", f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=256"),  # 192 rows, filled up to 256
        (f"{ACTOR}.ppo_micro_batch_size_per_gpu=3", f"{ACTOR}.use_dynamic_bsz=true"),
        (f"{REF}.log_prob_micro_batch_size_per_gpu=3",),  # no reference model runs
    ],
)
def test_what_divides_passes(overrides) -> None:
    check(*overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("data.train_batch_size=4", f"{ACTOR}.ppo_mini_batch_size=4"), "32 rows in a mini-batch, which 64"),
        ((f"{ACTOR}.ppo_micro_batch_size_per_gpu=48",), "128 rows in a mini-batch, which 48"),
        ((f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=48",), "128 rows in a step, which 48"),
        ((f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=128", "trainer.nnodes=2"), "64 rows in a step, which 128"),
        ((f"{ACTOR}.use_kl_loss=true", f"{REF}.log_prob_micro_batch_size_per_gpu=3"), "128 rows in a step, which 3"),
        (("trainer.n_gpus_per_node=3",), "42.6667 rows in a mini-batch, which 64"),
    ],
)
def test_what_does_not_divide_is_refused_before_models_load(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check(*overrides)
