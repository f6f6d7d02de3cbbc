"""``s2l.explorer.on_failure`` and what belongs to it: every setting that would be ignored is refused."""

import pytest

from s2l_ext.errors import ConfigError
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.rules import check_against_verl

pytestmark = pytest.mark.slow

OFFLINE = ["s2l.explorer.source=offline", "~s2l.explorer.model_path", "s2l.explorer.store=outputs/store"]


def checked(*overrides: str, recipe: str = "s2l_po/toy"):
    cfg = compose_config(recipe, list(overrides))
    s2l = parse_s2l(cfg.s2l)
    return s2l, check_against_verl(s2l, cfg)


def test_by_default_a_failed_explorer_ends_the_run():
    assert checked()[0].explorer.on_failure == "fail"


@pytest.mark.parametrize("policy", ["wait", "learner"])
def test_restarts_are_read_where_the_run_goes_on(policy):
    s2l, _ = checked(
        f"s2l.explorer.on_failure={policy}", "s2l.explorer.max_restarts=5", "s2l.explorer.restart_backoff_s=2"
    )
    assert (s2l.explorer.max_restarts, s2l.explorer.restart_backoff_s) == (5, 2.0)


@pytest.mark.parametrize("setting", ["max_restarts=5", "restart_backoff_s=2.0", "start_timeout_s=60.0"])
def test_restarts_of_a_run_that_ends_are_refused(setting):
    with pytest.raises(ConfigError, match=rf"s2l\.explorer\.{setting} would be ignored .*on_failure=fail"):
        checked(f"s2l.explorer.{setting}")


def test_a_colocated_servers_turn_has_a_time_limit_that_can_be_set():
    colocated = ["s2l.explorer.placement=colocated", "ray_kwargs.ray_init.num_gpus=1"]
    s2l, _ = checked(*colocated, "s2l.explorer.start_timeout_s=60.0")
    assert s2l.explorer.start_timeout_s == 60.0
    with pytest.raises(ConfigError, match=r"max_restarts=5 would be ignored .*on_failure=fail"):
        checked(*colocated, "s2l.explorer.max_restarts=5")


def test_no_restarts_and_a_wait_between_them_is_refused():
    learner = ["s2l.explorer.on_failure=learner", "s2l.explorer.max_restarts=0"]
    assert checked(*learner)[0].explorer.max_restarts == 0
    with pytest.raises(ConfigError, match=r"restart_backoff_s=2.0 would be ignored .*max_restarts=0"):
        checked(*learner, "s2l.explorer.restart_backoff_s=2")


def test_waiting_for_a_server_that_never_comes_is_refused():
    with pytest.raises(ConfigError, match=r"max_restarts=0 with s2l\.explorer\.on_failure=wait .*never started again"):
        checked("s2l.explorer.on_failure=wait", "s2l.explorer.max_restarts=0")


def test_a_learner_cannot_stand_in_for_a_teacher():
    teacher = ["s2l.explorer.on_failure=learner"]
    with pytest.raises(ConfigError, match=r"on_failure=learner with s2l\.distill .*Set s2l\.explorer\.on_failure=wait"):
        checked(*teacher, recipe="sparse_to_dense/stages/warm_up")


@pytest.mark.parametrize(
    "setting",
    ["on_failure=wait", "max_restarts=5", "health_interval_s=5.0", "health_timeout_s=5.0", "request_timeout_s=5.0"],
)
def test_stored_rollouts_have_no_servers_that_could_fail(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"s2l\.explorer\.{name}: source=offline does not have this key"):
        checked(*OFFLINE, f"s2l.explorer.{setting}")


def test_a_policy_that_does_not_exist_is_refused():
    with pytest.raises(ConfigError, match=r"on_failure='restart' is not a choice\. Choose from: fail, wait, learner"):
        checked("s2l.explorer.on_failure=restart")


def test_the_learners_router_is_not_the_explorers():
    with pytest.raises(ConfigError, match="router_config_path"):
        checked("s2l.explorer.rollout_overrides={router_config_path: router.yaml}")
