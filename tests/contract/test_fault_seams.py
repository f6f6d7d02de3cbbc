"""What the handling of failures asks of verl."""

import inspect
from types import SimpleNamespace

import pytest
from verl.experimental.agent_loop import agent_loop as verls_loop
from verl.experimental.reward_loop.reward_loop import RewardLoopManager
from verl.single_controller.ray.base import RayResourcePool
from verl.trainer.ppo.v1 import trainer_base, trainer_separate_async
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync
from verl.workers.rollout import router as router_module
from verl.workers.rollout.llm_server import LLMServerClient, LLMServerManager
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.router import GlobalRequestLoadBalancer
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMHttpServer, vLLMReplica

from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch.compose import compose_config
from s2l_ext.training import faults
from s2l_ext.training.agent_loop import BesideLearner

pytestmark = pytest.mark.contract


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_the_client_acquires_and_releases_as_we_override() -> None:
    assert parameters(LLMServerClient._acquire_server) == ["self", "request_id", "extra"]
    source = inspect.getsource(inspect.unwrap(LLMServerClient.generate))
    assert "await self._acquire_server(" in source and "finally:" in source and "self._release_server(" in source
    assert "_lb_require_acquire_fields" in inspect.getsource(LLMServerClient._acquire_server)
    assert GlobalRequestLoadBalancer({}).require_acquire_fields() == []
    assert GlobalRequestLoadBalancer({}).require_release_fields() == []


def test_the_router_can_lose_and_take_in_servers() -> None:
    assert parameters(GlobalRequestLoadBalancer.__init__) == ["self", "servers", "max_cache_size", "full_determinism"]
    assert parameters(GlobalRequestLoadBalancer.add_servers) == ["self", "servers"]
    assert parameters(GlobalRequestLoadBalancer.remove_servers) == ["self", "server_ids"]
    assert 'RuntimeError("No available servers in load balancer")' in inspect.getsource(GlobalRequestLoadBalancer)
    router = GlobalRequestLoadBalancer({"a": "A"})
    assert router.acquire_server("session")[0] == "a"
    router.remove_servers(["a"])
    router.add_servers({"b": "B"})
    assert router.acquire_server("session") == ("b", "B")


def test_the_manager_makes_router_and_replicas_as_we_do() -> None:
    assert parameters(LLMServerManager._init_global_load_balancer) == ["self"]
    source = inspect.getsource(LLMServerManager._initialize_llm_servers)
    for name in ("replica_rank", "config=self.rollout_config", "model_config=self.model_config", "gpus_per_node"):
        assert name in source
    assert "init_standalone()" in source and "name_suffix" in parameters(vLLMReplica.__init__)
    assert "{self.name_suffix}" in inspect.getsource(RolloutReplica.init_standalone)
    assert "{self.name_suffix}" in inspect.getsource(vLLMReplica.launch_servers)


def test_a_pending_placement_group_is_found_by_the_name_that_verl_gives_it() -> None:
    assert "{self.name_prefix}verl_group_" in inspect.getsource(RayResourcePool.get_placement_groups)
    assert "ray.get([pg.ready() for pg in pgs])" in inspect.getsource(RayResourcePool.get_placement_groups)


def test_health_is_asked_through_engine_core_and_workers() -> None:
    from vllm.v1.worker.worker_base import WorkerBase

    assert "self.engine.collective_rpc(" in inspect.getsource(vLLMHttpServer.collective_rpc)
    assert callable(WorkerBase.check_health)


def test_an_aborted_request_is_called_so() -> None:
    assert 'stop_reason="aborted"' in inspect.getsource(vLLMHttpServer.generate)


@pytest.mark.parametrize("kind", [ReplayBuffer, ReplayBufferAsync])
def test_replay_buffers_wait_at_one_place(kind) -> None:
    assert parameters(kind._wait_for_next_poll) == ["self", "partition_id", "last_debug_time"]
    loop = kind.sample if kind is ReplayBuffer else kind.wait_for_sampleable
    assert "self._wait_for_next_poll(" in inspect.getsource(loop)


def test_reward_workers_are_made_where_we_make_them() -> None:
    source = inspect.getsource(RewardLoopManager.__init__)
    assert source.index("self.reward_loop_workers_class = ray.remote(RewardLoopWorker)") < source.index(
        "self._init_reward_loop_workers()"
    )
    assert "self.reward_loop_workers_class.options(" in inspect.getsource(RewardLoopManager._init_reward_loop_workers)
    assert "= RewardLoopManager(" in inspect.getsource(trainer_base.PPOTrainer._setup)
    with faults.own_managers():
        assert trainer_base.RewardLoopManager is faults.RestartedRewardLoop
    assert trainer_base.RewardLoopManager is RewardLoopManager


def test_the_learners_router_is_made_where_we_make_it() -> None:
    assert "LLMServerManager.create(" in inspect.getsource(trainer_base.PPOTrainer._setup)
    source = inspect.getsource(LLMServerManager._init_global_load_balancer)
    for name in ("servers=dict(zip(", "router_config_path", "full_determinism", "load_balancer_cls"):
        assert name in source, name
    assert "max_cache_size=DEFAULT_ROUTING_CACHE_SIZE" in inspect.getsource(
        router_module._create_global_sticky_inflight
    )
    with faults.own_managers():
        assert trainer_base.LLMServerManager is faults.RouterBesideTrainer
        assert trainer_separate_async.LLMServerManager is faults.RouterBesideTrainer
    assert trainer_base.LLMServerManager is trainer_separate_async.LLMServerManager is LLMServerManager


def test_the_router_that_hands_out_sessions_is_the_one_watched() -> None:
    colocated, standalone = SimpleNamespace(), SimpleNamespace()
    source = inspect.getsource(trainer_separate_async.PPOTrainerSeparateAsync)
    assert "self.standalone_server_manager.get_client(" in source
    assert "self.standalone_server_manager: LLMServerManager = LLMServerManager.create(" in source
    assert faults._server_manager(SimpleNamespace(llm_server_manager=colocated)) is colocated
    both = SimpleNamespace(llm_server_manager=colocated, standalone_server_manager=standalone)
    assert faults._server_manager(both) is standalone


def test_agent_loop_workers_are_dealt_out_by_an_option_that_we_take_away() -> None:
    source = inspect.getsource(verls_loop.AgentLoopManager._init_agent_loop_workers)
    assert "self.agent_loop_workers_class.options(" in source and "scheduling_strategy=" in source

    class Workers:
        def options(self, **given):
            return given

    beside = BesideLearner(Workers(), {"pool": "learner"})
    assert beside.options(name="w", scheduling_strategy="round robin") == {
        "name": "w",
        "label_selector": {"pool": "learner"},
    }


def test_the_queues_actors_have_the_names_that_we_look_up() -> None:
    from transfer_queue import interface
    from transfer_queue.storage.bootstrap import simple_storage_bootstrap

    assert 'f"TransferQueueStorageUnit#{storage_unit_rank}"' in inspect.getsource(simple_storage_bootstrap)
    assert 'name="TransferQueueController", namespace="transfer_queue"' in inspect.getsource(interface)
    assert cluster_check.QUEUE == {"name": "TransferQueueController", "namespace": "transfer_queue"}
    assert "ray.kill(_TQ_CONTROLLER)" in inspect.getsource(interface.close), "a second run would still end the first"
    queue = compose_config("s2l_po/toy", []).transfer_queue.backend
    assert queue.storage_backend == "SimpleStorage" and queue.SimpleStorage.num_data_storage_units == 1


def test_a_session_is_run_again_from_its_start() -> None:
    """What a failed explorer session leaves behind is nothing: rows are put after the loop has ended."""
    source = inspect.getsource(verls_loop.AgentLoopWorker._run_agent_loop)
    assert source.index("await agent_loop.run(") < source.index("self._agent_loop_postprocess(")
