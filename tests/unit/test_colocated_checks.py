"""What an explorer on the learner's accelerators cannot do, and what it needs."""

import pytest
from omegaconf import DictConfig, open_dict

from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.plan_summary import build_plan, render
from s2l_ext.methods.explorer.rules import check_colocated
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.preflight import gpus_needed

pytestmark = pytest.mark.slow

COLOCATED = "s2l.explorer.placement=colocated"


def composed(*overrides: str) -> DictConfig:
    return compose_config("s2l_po/toy", [COLOCATED, *overrides])


def on_gpus(*overrides: str) -> DictConfig:
    cfg = composed("actor_rollout_ref.rollout.free_cache_engine=true", *overrides)
    with open_dict(cfg):
        cfg.trainer.device = "cuda"
    return cfg


def check(cfg: DictConfig) -> None:
    check_colocated(parse_s2l(cfg.s2l).explorer, cfg)


def test_it_needs_no_accelerator_of_its_own() -> None:
    cfg = composed()
    check(cfg)
    assert gpus_needed(cfg, parse_s2l(cfg.s2l)) == {"learner": 1}
    assert "the learner's GPUs, in turns" in render(build_plan(cfg, parse_s2l(cfg.s2l), "s2l_po/toy", "cpu"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("s2l.explorer.nnodes=2", "nnodes=2 would be ignored"),
        ("s2l.explorer.n_gpus_per_node=2", "n_gpus_per_node=2 would be ignored"),
        ("s2l.explorer.on_failure=wait", "on_failure=wait: a server cannot start again"),
        ("s2l.explorer.on_failure=learner", "on_failure=learner: a server cannot start again"),
        ("trainer.v1.trainer_mode=colocate_async", "the explorer sleeps then"),
        ("s2l.explorer.tensor_model_parallel_size=2", "does not divide trainer.n_gpus_per_node=1"),
    ],
)
def test_what_cannot_apply_is_refused(override, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check(composed(override))


def test_memory_is_split_while_both_sample() -> None:
    utilization = "actor_rollout_ref.rollout.gpu_memory_utilization"
    own = "+s2l.explorer.rollout_overrides.gpu_memory_utilization"
    check(on_gpus(f"{utilization}=0.6", f"{own}=0.35"))
    check(on_gpus(f"{utilization}=0.45"))
    with pytest.raises(ConfigError, match=r"gpu_memory_utilization=0.6 and the explorer's 0.36 are more than 0.95"):
        check(on_gpus(f"{utilization}=0.6", f"{own}=0.36"))
    with pytest.raises(ConfigError, match=r"=0.5 and the explorer's 0.5"):
        check(on_gpus(f"{utilization}=0.5"))


def test_engines_must_be_able_to_sleep() -> None:
    with pytest.raises(ConfigError, match="free_cache_engine=true"):
        check(on_gpus("actor_rollout_ref.rollout.free_cache_engine=false"))
    with pytest.raises(ConfigError, match="free_cache_engine=true"):
        check(on_gpus("+s2l.explorer.rollout_overrides.free_cache_engine=false"))
