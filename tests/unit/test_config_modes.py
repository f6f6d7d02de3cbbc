"""Trainer modes: names, how old a plan may be, and what a mode cannot do, refused with key, reason and fix."""

import pytest

from s2l_ext.config.modes import TRAINERS, batches_ahead, lag_limit, mode_of, most_draws
from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.controller_state import fingerprint
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.rules import check_mode

pytestmark = pytest.mark.slow

SEPARATE = (
    "trainer.v1.trainer_mode=separate_async",
    "trainer.v1.separate_async.parameter_sync_step=1",
    "actor_rollout_ref.rollout.nnodes=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.checkpoint_engine.backend=s2l_cpu",
)


def composed(*overrides: str, recipe: str = "s2l_po/toy"):
    return compose_config(recipe, [*overrides])


def check(*overrides: str, recipe: str = "s2l_po/toy") -> None:
    cfg = composed(*overrides, recipe=recipe)
    check_mode(parse_s2l(cfg.s2l), cfg)


def refused(*overrides: str, recipe: str = "s2l_po/toy") -> str:
    with pytest.raises(ConfigError) as error:
        check(*overrides, recipe=recipe)
    return str(error.value)


@pytest.mark.parametrize("mode", TRAINERS)
def test_a_mode_is_known_by_verls_name_and_by_ours(mode: str) -> None:
    for name in (mode, TRAINERS[mode]):
        assert mode_of(composed(f"trainer.v1.trainer_mode={name}")) == mode


def test_what_runs_is_accepted() -> None:
    for settings in ((), ("trainer.v1.trainer_mode=colocate_async",), SEPARATE):
        check(*settings)


@pytest.mark.parametrize(
    ("strategy", "ahead", "limit"), [("drop", 1, 7), ("drop", 3.5, 7), ("wait", 1, 8), ("wait", 1.5, 9)]
)
def test_limit_of_a_plans_age(strategy: str, ahead: float, limit: int) -> None:
    cfg = composed(
        "trainer.v1.trainer_mode=colocate_async",
        f"trainer.v1.sampler.max_off_policy_strategy={strategy}",
        f"trainer.v1.colocate_async.num_warmup_batches={ahead}",
    )
    assert (lag_limit(cfg), batches_ahead(cfg)) == (limit, ahead)
    assert (lag_limit(composed()), batches_ahead(composed())) == (0, 0)


def test_how_often_prompts_may_be_drawn_again() -> None:
    ahead = ("trainer.v1.trainer_mode=colocate_async", "data.train_batch_size=4")
    assert most_draws(composed(*ahead)) == 10 * 4 * 2 and most_draws(composed()) is None
    assert most_draws(composed(*ahead, "++algorithm.filter_groups.enable=true")) is None


def test_plans_of_any_age_are_refused_where_plans_matter() -> None:
    unbounded = ("trainer.v1.trainer_mode=colocate_async", "trainer.v1.sampler.max_off_policy_threshold=null")
    message = refused(*unbounded)
    assert "max_off_policy_threshold=null" in message and "s2l.explorer" in message and "Set " in message
    assert "s2l.curriculum" in refused(*unbounded, recipe="expo/toy")
    check(*unbounded, recipe="grpo/toy")  # verl's own run
    check(*unbounded, "s2l.curriculum=null", recipe="expo/toy")  # beta reads what is trained on


def test_a_seeded_agent_loop_is_refused_with_the_reason() -> None:
    seeded = "actor_rollout_ref.rollout.agent.default_agent_loop=s2l_seeded"
    message = refused("trainer.v1.trainer_mode=colocate_async", seeded)
    assert "s2l_seeded" in message and "single_turn_agent" in message
    check(seeded)


@pytest.mark.parametrize("key", ["nnodes", "n_gpus_per_node"])
def test_separate_rollouts_need_gpus(key: str) -> None:
    assert f"actor_rollout_ref.rollout.{key}=0" in refused(*SEPARATE, f"actor_rollout_ref.rollout.{key}=0")


@pytest.mark.parametrize(
    ("device", "engine", "words"),
    [("cpu", "naive", "s2l_cpu"), ("cpu", "nccl", "s2l_cpu"), ("cuda", "naive", "nccl"), ("cuda", "s2l_cpu", "nccl")],
)
def test_an_engine_that_cannot_carry_weights_here_is_refused(device: str, engine: str, words: str) -> None:
    message = refused(
        *SEPARATE, f"trainer.device={device}", f"actor_rollout_ref.rollout.checkpoint_engine.backend={engine}"
    )
    assert f"checkpoint_engine.backend={engine}" in message and words in message.split(":", 1)[1]


def test_several_updates_a_step_are_refused_with_a_controller_on() -> None:
    several = (*SEPARATE, "trainer.v1.separate_async.parameter_sync_step=4", "data.train_batch_size=64")
    assert "parameter_sync_step=4" in refused(*several)
    check(*several, recipe="grpo/toy")


@pytest.mark.parametrize("mode", ["sync", "colocate_async"])
@pytest.mark.parametrize("recipe", ["s2l_po/toy", "g2rpo_a/toy", "sparse_to_dense/stages/opd", "expo/toy"])
def test_several_updates_a_step_are_refused_in_every_mode_and_for_every_method(mode: str, recipe: str) -> None:
    """verl reads the key of whatever mode it runs; the plans of a step would be gone at its second update."""
    key = f"trainer.v1.{mode}.parameter_sync_step"
    assert refused(f"trainer.v1.trainer_mode={mode}", f"++{key}=2", recipe=recipe) == (
        f"{key}=2: verl would make that many updates per step, but controllers of s2l act once. Set {key}=1."
    )


def test_batch_and_mini_batch_that_verl_would_not_take_are_refused_before_it_starts() -> None:
    message = refused(*SEPARATE, "actor_rollout_ref.actor.ppo_mini_batch_size=8")
    assert "ppo_mini_batch_size=8" in message and "ppo_mini_batch_size=16" in message


def test_gpus_of_separate_rollouts_are_counted() -> None:
    cfg = composed(*SEPARATE)
    assert gpus_needed(cfg, parse_s2l(cfg.s2l)) == {"learner": 1, "explorer": 1, "rollout": 1}


def test_a_checkpoint_is_resumed_in_its_own_mode() -> None:
    """Prompts in flight exist in one mode only. Synchronous checkpoints of earlier versions stay what they were."""
    prints = {}
    for mode in ("sync", "colocate_async"):
        cfg = composed(f"trainer.v1.trainer_mode={mode}")
        prints[mode] = fingerprint(parse_s2l(cfg.s2l), cfg)
    assert "trainer_mode" not in prints["sync"] and prints["colocate_async"]["trainer_mode"] == "colocate_async"
