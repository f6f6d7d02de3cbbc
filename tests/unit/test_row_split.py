"""Rows over workers and micro-batches, by hand: 16 prompts x 8 = 128 rows in one mini-batch."""

import pytest

from s2l_ext.config.row_split import check_row_split
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config

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


GPUS = "trainer.n_gpus_per_node=8"
ULYSSES = "fsdp_config.ulysses_sequence_parallel_size"
PADDED = (f"{ROLLOUT}.log_prob_micro_batch_size_per_gpu=1",)


def refusal(*overrides: str) -> str:
    with pytest.raises(ConfigError) as refused:
        check(*overrides)
    return str(refused.value)


def test_gpus_of_one_sequence_share_its_rows() -> None:
    """16 prompts x 8 = 128 rows on 8 GPUs: 16 on each, 64 on each group of four that Ulysses makes."""
    micro = f"{ACTOR}.ppo_micro_batch_size_per_gpu=64"
    check(GPUS, f"{ACTOR}.{ULYSSES}=4", micro, *PADDED)
    check(GPUS, f"{ACTOR}.ulysses_sequence_parallel_size=4", micro, *PADDED)
    assert refusal(GPUS, micro, *PADDED) == (
        f"{ACTOR}.ppo_micro_batch_size_per_gpu=64: a worker has 16 rows in a mini-batch, which 64 does not divide. "
        f"Set a divisor of 16, or {ACTOR}.use_dynamic_bsz=true."
    )


def test_the_deprecated_key_wins_where_both_are_set() -> None:
    """As in verl: Ulysses 2, so 32 rows."""
    both = (f"{ACTOR}.ulysses_sequence_parallel_size=2", f"{ACTOR}.{ULYSSES}=8")
    assert "a worker has 32 rows" in refusal(GPUS, *both, f"{ACTOR}.ppo_micro_batch_size_per_gpu=64", *PADDED)


def test_the_reference_has_a_split_of_its_own() -> None:
    ref = (GPUS, *PADDED, f"{ACTOR}.ppo_micro_batch_size_per_gpu=1", f"{ACTOR}.use_kl_loss=true")
    check(*ref, f"{REF}.{ULYSSES}=4", f"{REF}.log_prob_micro_batch_size_per_gpu=64")
    assert "a worker has 16 rows in a step, which 64" in refusal(*ref, f"{REF}.log_prob_micro_batch_size_per_gpu=64")


@pytest.mark.parametrize(("sizes", "rows"), [((4, 1, 1), 64), ((2, 2, 1), 64), ((1, 2, 4), 128), ((1, 1, 1), 16)])
def test_megatrons_three_dimensions_share_rows(sizes, rows) -> None:
    names = ("tensor_model_parallel_size", "pipeline_model_parallel_size", "context_parallel_size")
    blocks = [f"++{ACTOR}.megatron.{name}={size}" for name, size in zip(names, sizes, strict=True)]
    settings = (GPUS, *PADDED, f"{ACTOR}.strategy=megatron", *blocks)
    check(*settings, f"{ACTOR}.ppo_micro_batch_size_per_gpu={rows}")
    assert f"a worker has {rows} rows" in refusal(*settings, f"{ACTOR}.ppo_micro_batch_size_per_gpu=256")
