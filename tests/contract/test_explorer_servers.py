"""The explorer's sessions and servers, as the driver and the workers see them; without Ray."""

import asyncio
import json
import zlib
from types import SimpleNamespace

import pytest
from verl.experimental.agent_loop.single_turn_agent_loop import SingleTurnAgentLoop

from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving import health as explorer_health
from s2l_ext.methods.explorer.serving import servers as explorer_servers
from s2l_ext.methods.explorer.serving.client import first_line
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats, HealthMonitor
from s2l_ext.methods.explorer.serving.servers import ExplorerServerManager, ExplorerServers
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.store.reader import Rollout
from s2l_ext.training import agent_loop
from s2l_ext.training.agent_loop import S2LAgentLoopWorker
from s2l_ext.training.batch_fields import SOURCE_FIELD, STORED_FIELD
from s2l_ext.training.seeded_agent_loop import SeededAgentLoop

pytestmark = pytest.mark.contract

MESSAGES = [{"role": "user", "content": "1+1=?"}]


# ---- sessions -----------------------------------------------------------------------------------------------------


class Store:
    """Rollouts of one prompt: the token of rollout 3 is 103."""

    def rollout(self, name: str, number: int) -> Rollout:
        assert name == prompt_id(MESSAGES, None)
        return Rollout(name, number, 0, [5], [100 + number], [-0.5], False, 1.0, 1.0, "text")


def test_the_first_sessions_of_a_group_are_stored_rollouts_and_are_the_explorers(composed, monkeypatch) -> None:
    """Rollouts 3 and 7 of the prompt, drawn at step 5: weight version 4."""

    async def verls_loop(self, params, trajectory, *, session_id, **kwargs):
        if isinstance(self.llm_client, str):
            return self.llm_client, params, kwargs[SOURCE_FIELD]
        output = await self.llm_client.generate("id", prompt_ids=[5], sampling_params=params)
        return output.token_ids, params["temperature"], kwargs[SOURCE_FIELD], output.extra_fields["global_steps"]

    monkeypatch.setattr(agent_loop._WorkerBase, "_run_agent_loop", verls_loop)
    worker = S2LAgentLoopWorker.__new__(S2LAgentLoopWorker)
    stored = "s2l.explorer={source: offline, store: x, mix_steps: 3}"
    worker.config = composed("grpo/toy", stored)
    worker.s2l, worker._store, worker.llm_client = parse_s2l(worker.config.s2l), Store(), "the learner's"
    row = {"raw_prompt": MESSAGES, "global_steps": 5, STORED_FIELD: "3 7"}

    def session(number: int, validate: bool = False):
        loop = worker._run_agent_loop({"temperature": 1.0}, {"validate": validate}, session_id=number, **row)
        return asyncio.run(loop)

    assert session(0) == ([103], 1.0, "explorer", 4) and session(1) == ([107], 1.0, "explorer", 4)
    learners = ("the learner's", {"temperature": 1.0}, "learner")
    assert session(2) == session(0, validate=True) == learners


def test_guidance_is_masked_in_the_first_output_of_a_session(composed, monkeypatch) -> None:
    """And the row of every output carries its length."""

    async def verls_end(self, output, validate, **kwargs):
        return kwargs

    monkeypatch.setattr(agent_loop._WorkerBase, "_agent_loop_postprocess", verls_end)
    worker = S2LAgentLoopWorker.__new__(S2LAgentLoopWorker)
    worker.s2l = parse_s2l(composed("s2l_po/toy", "s2l.guidance={alpha: 0.5}").s2l)
    worker.llm_client = SimpleNamespace(placed=[7, 8])
    first, second = SimpleNamespace(response_mask=[1, 1, 1, 1]), SimpleNamespace(response_mask=[1, 1, 1])
    fields = asyncio.run(worker._agent_loop_postprocess([first, second], False))
    assert (first.response_mask, second.response_mask) == ([0, 0, 1, 1], [1, 1, 1])
    assert fields == {"s2l_prefix_len": 2}


def test_every_request_has_the_seed_of_its_step_prompt_and_session(monkeypatch) -> None:
    async def verls(self, params, priority=0, **kwargs):
        return params, priority, kwargs["session_id"]

    monkeypatch.setattr(SingleTurnAgentLoop, "run", verls)
    loop = SeededAgentLoop.__new__(SeededAgentLoop)
    loop.rollout_config = SimpleNamespace(seed=11)
    row = {"raw_prompt": MESSAGES, "index": 4, "global_steps": 5, "session_id": 2}
    found = asyncio.run(loop.run({"top_p": 0.9}, priority=3, **row))
    expected = zlib.crc32(f"11/5/4/{json.dumps(MESSAGES, sort_keys=True)}/2".encode()) & 0x7FFFFFFF
    assert found == ({"top_p": 0.9, "seed": expected}, 3, 2)


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (RuntimeError("first\nsecond"), "RuntimeError: first"),
        (RuntimeError(), "RuntimeError: no message"),
        (ConnectionResetError(104, "Connection reset by peer"), "ConnectionResetError: Connection reset by peer"),
    ],
)
def test_what_is_said_of_a_failure(error: Exception, line: str) -> None:
    assert first_line(error) == line
    ray_error = RuntimeError("a traceback of another process")
    ray_error.cause = error
    assert first_line(ray_error) == line


# ---- servers ------------------------------------------------------------------------------------------------------


def servers(on_failure: str = "wait", given_up: str | None = None) -> ExplorerServers:
    """Of a run that goes on: two replicas, of 2 and 3 GPUs, are up."""
    running = ExplorerServers.__new__(ExplorerServers)
    running._explorer, running._manager = LiveExplorer(model_path="m", on_failure=on_failure), SimpleNamespace()
    up = [SimpleNamespace(gpus=2), SimpleNamespace(gpus=3)]
    running._monitor = SimpleNamespace(up=up, status=lambda: {"given_up": given_up}, set_step=up.append)
    return running


def test_gpus_are_held_by_servers_that_are_up() -> None:
    running = servers()
    assert running.num_gpus == 5
    running._monitor.up.pop()
    assert running.num_gpus == 2
    running._manager = None
    assert running.num_gpus == 0 and running.stop() == 0 and running.client() is None


@pytest.mark.parametrize(("on_failure", "given_up", "ends"), [("wait", "x", 1), ("wait", None, 0), ("learner", "x", 0)])
def test_a_run_ends_when_nobody_stands_in_for_the_explorer(on_failure: str, given_up, ends: int) -> None:
    running = servers(on_failure, given_up)
    if not ends:
        assert running.check() is None
        return
    with pytest.raises(S2LError, match="the explorer failed: x"):
        running.check()
    running._manager = None
    assert running.check() is None, "its schedule is over"


def test_every_replica_of_verl_is_wrapped_with_its_rank_and_its_gpus(monkeypatch) -> None:
    class Wrapped:
        def __init__(self, build, rank: int, gpus: int) -> None:
            self.build, self.rank, self.gpus, self.adopt = build, rank, gpus, adopted.append

    adopted: list[object] = []
    monkeypatch.setattr(explorer_servers, "Replica", Wrapped)
    manager = ExplorerServerManager.__new__(ExplorerServerManager)
    verls = [SimpleNamespace(replica_rank=1000, world_size=2), SimpleNamespace(replica_rank=1001, world_size=3)]
    manager.rollout_replicas, manager.model_config = verls, "model"
    manager.rollout_config = SimpleNamespace(n_gpus_per_node=8)
    manager.rollout_replica_class = lambda **arguments: arguments
    wrapped = manager.replicas()
    assert [(one.rank, one.gpus) for one in wrapped] == [(1000, 2), (1001, 3)] and adopted == verls
    built = wrapped[1].build("again1")
    assert (built["replica_rank"], built["gpus_per_node"], built["name_suffix"]) == (1001, 8, "again1")


# ---- the monitor ----------------------------------------------------------------------------------------------------


class Told:
    """A server, or a router, that writes down what it is told."""

    def __init__(self) -> None:
        self.said: list[tuple] = []

    def __getattr__(self, name: str):
        return SimpleNamespace(remote=lambda *arguments: self.said.append((name, *arguments)))


class Server:
    """A replica of two processes."""

    def __init__(self, name: str) -> None:
        self.address, self.handle, self.rank, self.servers = name, name.upper(), 0, [Told(), Told()]


@pytest.fixture
def monitor(monkeypatch) -> HealthMonitor:
    """Over two replicas; the second one's server does not answer."""
    fake = SimpleNamespace(get=lambda calls, timeout: calls)
    monkeypatch.setattr(explorer_health, "ray", fake)
    monkeypatch.setattr(explorer_health, "answers", lambda calls, timeout: dict.fromkeys(list(calls)[1:], "hangs"))
    replicas = [Server(name) for name in "ab"]
    return HealthMonitor(LiveExplorer(model_path="m", health_timeout_s=0.1), replicas, Told(), ExplorerHealthStats())


def test_every_server_is_told_the_step_and_one_that_does_not_answer_is_looked_at(monitor) -> None:
    monitor.set_step(6)
    assert [server.said for one in monitor.up for server in one.servers] == [[("set_global_steps", 6)]] * 4
    assert monitor._router.said == [("suspect", "b", "hangs")]


def test_a_server_that_comes_back_is_told_the_step_before_it_gets_requests(monitor) -> None:
    back = monitor.up[0]
    monitor._readmit(back)
    assert [server.said for server in back.servers] == [[], []], "no step yet"
    monitor.set_step(6)
    monitor._router.said.clear()
    monitor._readmit(back)
    assert [server.said for server in back.servers] == [[("set_global_steps", 6)] * 2] * 2
    assert monitor._router.said == [("add_servers", {"a": "A"})]


@pytest.mark.parametrize(("policy", "more"), [("wait", []), ("fail", [("give_up", "server b: hangs")])])
def test_a_lost_server_gets_no_requests_while_it_is_down(monitor, monkeypatch, policy: str, more: list) -> None:
    monkeypatch.setattr(explorer_health, "Thread", lambda **_: SimpleNamespace(start=lambda: None))
    lost, monitor._explorer = monitor.up[1], LiveExplorer(model_path="m", on_failure=policy)
    monitor._mark_down(lost, "hangs")
    assert monitor._router.said == [("forget", "b"), *more]
    assert [one.address for one in monitor.up] == ["a"] and monitor._down == [lost]


def test_the_end_returns_every_replica_and_restarts_none(monitor, monkeypatch) -> None:
    monkeypatch.setattr(monitor, "join", lambda timeout: None)
    monitor._down.append(monitor.up.pop())
    monitor._stats.down(0, now=1.0)
    assert [one.address for one in monitor.stop()] == ["a", "b"]
    assert monitor._over.is_set() and not monitor._stats._down_since
