"""The explorer beside the learner: verl's colocated replicas, and when they sleep."""

import inspect
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from transfer_queue import KVBatchMeta
from verl.trainer.ppo.v1 import trainer_base
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl.workers.rollout.llm_server import LLMServerManager
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.vllm_rollout import vllm_async_server

from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.controller import Explorer
from s2l_ext.methods.explorer.serving import health as explorer_health
from s2l_ext.methods.explorer.serving.colocated import ColocatedManager, ColocatedReplica, ColocatedServers
from s2l_ext.methods.explorer.serving.lifecycle import ExplorerLifecycle
from s2l_ext.methods.explorer.serving.servers import ExplorerServers, ending
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.trainer import S2LTrainerMixin
from s2l_ext.training.trainers_by_mode import S2LTrainer


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


class Server:
    """An actor's handle, of which the calls are noted and answered with ``answers``."""

    def __init__(self, said: list[str], **answers: str | Exception) -> None:
        for name in ("sleep", "wake_up"):
            answer = answers.get(name, "done")
            setattr(self, name, SimpleNamespace(remote=lambda name=name, answer=answer: said.append(name) or answer))


class Answered:
    """Ray, with calls that are their own results."""

    def wait(self, refs, num_returns, timeout):
        assert timeout == 77
        ready = [ref for ref in refs if ref != "hangs"]
        return ready, [ref for ref in refs if ref == "hangs"]

    def get(self, refs):
        for ref in refs:
            if isinstance(ref, Exception):
                raise ref


@pytest.fixture
def colocated(monkeypatch):
    def build(given_up: str | None = None, **answers: str | Exception):
        said: list[str] = []
        monkeypatch.setattr(explorer_health, "ray", Answered())
        servers = ColocatedServers.__new__(ColocatedServers)
        servers._manager, servers._awake, servers.sleeps = object(), True, True
        servers._explorer = LiveExplorer(model_path="m", placement="colocated", start_timeout_s=77.0)
        replica = ColocatedReplica(lambda suffix: None, 1000, gpus=0)
        replica._verls = SimpleNamespace(servers=[Server(said, **answers)], server_address="1.2.3.4:5")
        servers._monitor = SimpleNamespace(up=[replica], status=lambda: {"given_up": given_up})
        return servers, said

    return build


def test_each_turn_is_taken_once(colocated) -> None:
    servers, said = colocated()
    for turn in (servers.wake_up, servers.sleep, servers.sleep, servers.wake_up, servers.wake_up, servers.sleep):
        turn()
    assert said == ["sleep", "wake_up", "sleep"]


def test_an_engine_that_cannot_sleep_is_not_asked(colocated) -> None:
    servers, said = colocated()
    servers.sleeps = False
    servers.sleep()
    servers.wake_up()
    assert said == []


@pytest.mark.parametrize(
    ("answer", "expected"), [("hangs", "no answer within 77 s"), (RuntimeError("died\nat 7"), "RuntimeError: died")]
)
def test_a_server_that_hangs_or_dies_at_its_turn_ends_the_run_with_one_message(colocated, answer, expected) -> None:
    servers, _ = colocated(sleep=answer)
    with pytest.raises(S2LError, match=rf"explorer failed: server 1\.2\.3\.4:5: sleep: {expected}\. .*resumes"):
        servers.sleep()


def test_the_watchs_reason_comes_first(colocated) -> None:
    servers, _ = colocated(given_up="server 1.2.3.4:5: no answer within 60 s", sleep=RuntimeError("killed"))
    with pytest.raises(S2LError, match=r"server 1\.2\.3\.4:5: no answer within 60 s\."):
        servers.sleep()


# ---- verl's order ---------------------------------------------------------------------------------------------------

CONFIG = {
    "data": {"train_batch_size": 1},
    "trainer": {
        "project_name": "p",
        "experiment_name": "e",
        "logger": [],
        "total_epochs": 1,
        "save_freq": -1,
        "test_freq": 1,
        "critic_warmup": 0,
    },
    "global_profiler": {"steps": None, "profile_continuous_steps": False},
    "actor_rollout_ref": {"rollout": {"temperature": 1.0}},
}


def two_steps(monkeypatch, servers: ExplorerServers, said: list[str]) -> None:
    """verl's own ``fit``, ``step`` and hooks; what works with tensors, engines or TransferQueue is noted only."""
    for name in ("Tracking", "ValidationGenerationsLogger", "DapoFilteredRewardTableLogger"):
        monkeypatch.setattr(trainer_base, name, lambda *args, **kwargs: SimpleNamespace(log=lambda **kwargs: None))
    monkeypatch.setattr(trainer_base.SkipManager, "init", lambda config: None)
    silent = SimpleNamespace(kv_batch_put=lambda **kwargs: None, kv_clear=lambda **kwargs: None)
    monkeypatch.setattr(trainer_base, "tq", silent)
    rows = KVBatchMeta(partition_id="train", keys=["a_0_0"], tags=[{}])

    class Trainer(S2LTrainerMixin, PPOTrainerSync):
        trainer_mode = mode = "sync"
        global_steps, parameter_sync_step = 0, 1
        total_training_steps = steps_per_epoch = 2
        config, watchdog = OmegaConf.create(CONFIG), None
        use_reference_policy = use_critic = False
        reward_loop_manager = SimpleNamespace(reward_loop_worker_handles=[])
        replay_buffer = SimpleNamespace(sample=lambda **kwargs: (said.append("rows are there"), (rows, {}))[1])
        checkpoint_manager = SimpleNamespace(
            update_weights=lambda step: said.append("learner has new weights"),
            sleep_replicas=lambda: said.append("learner sleeps"),
        )

        def __init__(self) -> None:
            """With an explorer that every step needs."""
            config = LiveExplorer(model_path="m")
            explorer = Explorer(config, S2LConfig(explorer=config), self.config)
            explorer.life = ExplorerLifecycle(config, lambda step: 1, self)
            explorer.life.servers, self.methods = servers, [explorer]

        def _next_train_batch(self, num_prompts=None):
            return {"uid": ["a"]}

        def _validate(self):
            said.append("validation")
            return {"accuracy": 1.0}

        def _unchanged(self, batch, metrics):
            return batch

        _balance_batch = _compute_old_log_prob = _compute_advantage = _unchanged

        def _update_actor(self, batch, metrics):
            said.append("update")
            return batch

        def _nothing(self, *args, **kwargs):
            pass

        _compute_metrics = _shutdown_dump_executor = _nothing

    Trainer().fit(SimpleNamespace(generate_sequences=lambda batch: said.append("prompts are sent")))


def test_it_is_awake_from_before_prompts_are_sent_until_the_rows_are_there(monkeypatch, colocated) -> None:
    servers, said = colocated()
    two_steps(monkeypatch, servers, said)
    sampled = ["prompts are sent", "rows are there", "learner sleeps", "sleep"]
    updated = ["update", "learner has new weights", "validation"]
    assert said == ["validation", *sampled, *updated, "wake_up", *sampled, *updated]


def test_a_dedicated_explorer_takes_no_turns(monkeypatch) -> None:
    said: list[str] = []
    servers = ExplorerServers.__new__(ExplorerServers)
    servers._manager = None
    two_steps(monkeypatch, servers, said)
    assert "prompts are sent" in said and not {"sleep", "wake_up"} & set(said)


def test_the_trainers_hooks_are_those() -> None:
    order = [name.__name__ for name in S2LTrainer.__mro__]
    assert order.index("S2LTrainerMixin") < order.index("PPOTrainerSync")
    assert S2LTrainer.prepare_step is S2LTrainerMixin.prepare_step
    assert S2LTrainer.on_sample_end is S2LTrainerMixin.on_sample_end


def test_the_learners_placement_group_is_left_alone() -> None:
    replica = ColocatedReplica(lambda suffix: None, 1000, gpus=0)
    assert replica.kill() == []
    pool = SimpleNamespace(pgs=["the learner's"])
    replica._verls = SimpleNamespace(servers=[], workers=[], resource_pool=pool)
    assert replica.kill() == [] and pool.pgs == ["the learner's"]


def test_the_end_of_a_run_offers_nothing_that_is_refused() -> None:
    colocated = LiveExplorer(model_path="m", placement="colocated")
    assert "on_failure=wait" not in ending(colocated, "dead") and "placement=dedicated" in ending(colocated, "dead")
    assert "on_failure=wait (for its restart) or learner" in ending(LiveExplorer(model_path="m"), "dead")
