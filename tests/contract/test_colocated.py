"""The explorer beside the learner: verl's colocated replicas, and when they sleep."""

import inspect
from types import SimpleNamespace

import pytest
import ray
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.vllm_rollout import vllm_async_server

from s2l_ext.config import ExplorerConfig
from s2l_ext.rollout.explorer_colocated import ColocatedManager, ColocatedReplica, ColocatedServers
from s2l_ext.rollout.explorer_servers import ExplorerServers, _ending
from s2l_ext.trainer.explorer_life import ExplorerLife
from s2l_ext.trainer.s2l_trainer import S2LTrainer


def test_verl_places_a_colocated_replica_in_a_pool_that_exists() -> None:
    assert list(inspect.signature(RolloutReplica.init_colocated).parameters) == ["self", "resource_pool"]
    assert "resource_pool=self.resource_pool" in inspect.getsource(RolloutReplica.init_colocated)


def test_the_manager_overrides_the_method_that_makes_replicas() -> None:
    parameters = list(inspect.signature(LLMServerManager._initialize_llm_servers).parameters)
    assert parameters == list(inspect.signature(ColocatedManager._initialize_llm_servers).parameters)
    assert "_initialize_llm_servers()" in inspect.getsource(LLMServerManager.create)


def test_colocated_engines_sleep_and_wake_without_new_weights() -> None:
    source = inspect.getsource(vllm_async_server)
    assert "elif self.rollout_mode == RolloutMode.COLOCATED:\n            await self.engine.sleep(level=1)" in source
    assert "# Directly call engine to wake up without sync weights." in source
    assert "not self.config.free_cache_engine:\n            return" in source


def test_the_trainer_wakes_it_before_and_sleeps_it_after_the_learners_rows_are_there() -> None:
    order = [name.__name__ for name in S2LTrainer.__mro__]
    assert order.index("ExplorerLife") < order.index("PPOTrainerSync")
    step = inspect.getsource(PPOTrainerSync._step_once)
    begin, sample, end, train = (
        step.index(word) for word in ("sample_begin", "buffer.sample(", "sample_end", "_log_prob")
    )
    assert begin < sample < end < train


class Server:
    """An actor's handle, of which the calls are counted."""

    def __init__(self, calls: list[str]) -> None:
        for name in ("sleep", "wake_up"):
            setattr(self, name, SimpleNamespace(remote=lambda name=name: calls.append(name)))


@pytest.fixture
def colocated(monkeypatch):
    calls: list[str] = []
    monkeypatch.setattr(ray, "get", lambda refs: refs)
    servers = ColocatedServers.__new__(ColocatedServers)
    servers._manager, servers._awake, servers.sleeps = object(), True, True
    servers._watch = SimpleNamespace(up=[SimpleNamespace(servers=[Server(calls)])])
    return servers, calls


def test_each_turn_is_taken_once(colocated) -> None:
    servers, calls = colocated
    for turn in (servers.wake_up, servers.sleep, servers.sleep, servers.wake_up, servers.wake_up, servers.sleep):
        turn()
    assert calls == ["sleep", "wake_up", "sleep"]


def test_an_engine_that_cannot_sleep_is_not_asked(colocated) -> None:
    servers, calls = colocated
    servers.sleeps = False
    servers.sleep()
    servers.wake_up()
    assert calls == []


@pytest.mark.parametrize(
    ("servers", "expected"), [(ColocatedServers, ["wake_up", "verl", "sleep"]), (ExplorerServers, ["verl"])]
)
def test_hooks_of_a_step(servers, expected) -> None:
    said: list[str] = []

    class Verl:
        def on_sample_begin(self) -> None:
            pass

        def on_sample_end(self) -> None:
            said.append("verl")

    class Trainer(ExplorerLife, Verl):
        explorer_servers = servers.__new__(servers)

    if servers is ColocatedServers:
        Trainer.explorer_servers.wake_up = lambda: said.append("wake_up")
        Trainer.explorer_servers.sleep = lambda: said.append("sleep")
    Trainer().on_sample_begin()
    Trainer().on_sample_end()
    assert said == expected


def test_the_learners_placement_group_is_left_alone() -> None:
    replica = ColocatedReplica(lambda suffix: None, 1000, gpus=0)
    assert replica.kill() == []
    pool = SimpleNamespace(pgs=["the learner's"])
    replica._verls = SimpleNamespace(servers=[], workers=[], resource_pool=pool)
    assert replica.kill() == [] and pool.pgs == ["the learner's"]


def test_the_end_of_a_run_offers_nothing_that_is_refused() -> None:
    colocated = ExplorerConfig(model_path="m", placement="colocated")
    assert "on_failure=wait" not in _ending(colocated, "dead") and "placement=dedicated" in _ending(colocated, "dead")
    assert "on_failure=wait (for its restart) or learner" in _ending(ExplorerConfig(model_path="m"), "dead")
