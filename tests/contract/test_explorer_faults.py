"""Failures of the explorer without a run: times worked out by hand, the router, what sessions and the monitor do."""

import asyncio
import inspect
import signal
import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest
from verl.workers.rollout.replica import TokenOutput

from s2l_ext.errors import S2LError
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving import client as explorer_client
from s2l_ext.methods.explorer.serving import health as explorer_health
from s2l_ext.methods.explorer.serving.client import ExplorerClient, ExplorerFailed, SessionFaults
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats, HealthMonitor
from s2l_ext.methods.explorer.serving.servers import ExplorerRouter
from s2l_ext.training import faults
from s2l_ext.utils.processes import kill_processes

pytestmark = pytest.mark.contract


# ---- times and counts ---------------------------------------------------------------------------------------------


def test_down_seconds_by_hand() -> None:
    """Server 0 is down from 10 to 15, server 1 from 12 on; read at 14 (4 + 2), at 20 (5 + 8 - 6), at 21 (1)."""
    stats = ExplorerHealthStats()
    stats.down(0, now=10)
    stats.down(1, now=12)
    stats.down(0, now=13)
    stats.saw_failed_requests(3)
    assert stats.step_metrics(now=14) == {
        "s2l/explorer/restarts": 0,
        "s2l/explorer/failed_requests": 3,
        "s2l/explorer/down_seconds": 6,
    }
    stats.back(0, now=15)
    stats.saw_failed_requests(5)
    assert stats.step_metrics(now=20) == {
        "s2l/explorer/restarts": 1,
        "s2l/explorer/failed_requests": 2,
        "s2l/explorer/down_seconds": 7,
    }
    stats.gone(1, now=21)
    assert stats.step_metrics(now=30)["s2l/explorer/down_seconds"] == 1
    assert stats.step_metrics(now=40)["s2l/explorer/down_seconds"] == 0


# ---- the router ---------------------------------------------------------------------------------------------------


def test_a_reported_server_gets_no_requests_until_it_is_taken_in_again() -> None:
    router = ExplorerRouter({"a": "A", "b": "B"}, policy="wait")
    router.report("a", "no answer within 5 s")
    assert {router.acquire_server(str(number))[0] for number in range(8)} == {"b"}
    assert router.status()["suspects"] == {"a": "no answer within 5 s"}
    router.add_servers({"a": "A"})
    assert router.status() == {"up": ["b", "a"], "suspects": {}, "failed_requests": 1, "given_up": None}
    router.report("a", "dead")
    router.forget("a")
    assert router.status()["suspects"] == {} and router.status()["failed_requests"] == 2


def test_without_a_server_nothing_is_counted_as_a_request() -> None:
    router = ExplorerRouter({}, policy="learner")
    with pytest.raises(RuntimeError, match="No available servers"):
        router.acquire_server("x")
    router.report(None, "RuntimeError: No available servers in load balancer")
    assert router.status()["failed_requests"] == 0 and router.status()["given_up"] is None


def test_with_fail_the_first_report_is_the_end_and_the_reason() -> None:
    router = ExplorerRouter({"a": "A"}, policy="fail")
    router.report("a", "EngineDeadError: x")
    router.report("a", "later")
    assert router.status()["given_up"] == "a: EngineDeadError: x"


# ---- a session ----------------------------------------------------------------------------------------------------


class Local:
    """An actor's handle onto an object of this process."""

    def __init__(self, instance) -> None:
        self.instance = instance

    def __getattr__(self, name):
        async def call(*args, **kwargs):
            result = getattr(self.instance, name)(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return SimpleNamespace(remote=call)


class Server:
    """Answers with the next of ``answers``: an exception, seconds to hang, or a stop reason."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    async def generate(self, **request):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        if not isinstance(answer, str):
            await asyncio.sleep(answer)
        return TokenOutput(token_ids=[1], stop_reason=answer if isinstance(answer, str) else "completed")


def client_of(router, timeout_s=0.2) -> ExplorerClient:
    config = SimpleNamespace(actor_rollout_ref=SimpleNamespace(rollout=SimpleNamespace(name="vllm")))
    return ExplorerClient(config=config, load_balancer_handle=Local(router), timeout_s=timeout_s).for_session()


def ask(client):
    async def go():
        answer = await client.generate("r", prompt_ids=[1], sampling_params={})
        await asyncio.sleep(0)
        return answer

    return go()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (RuntimeError("EngineCore encountered an issue\nmore"), "RuntimeError: EngineCore encountered an issue$"),
        (60.0, r"no answer within 0\.2 s"),
        ("aborted", "the server gave up the request"),
    ],
)
def test_every_way_in_which_a_server_fails_is_one_error(answer, said) -> None:
    client = client_of(ExplorerRouter({"a": Local(Server(answer))}, policy="wait"))
    with pytest.raises(ExplorerFailed, match=said):
        asyncio.run(ask(client))
    assert client.server == "a"


def test_no_server_at_all_is_the_same_error_without_a_name() -> None:
    client = client_of(ExplorerRouter({}, policy="wait"))
    with pytest.raises(ExplorerFailed, match="No available servers"):
        asyncio.run(ask(client))
    assert client.server is None


def test_a_request_that_is_refused_says_nothing_against_the_server() -> None:
    client = client_of(ExplorerRouter({"a": Local(Server(ValueError("Prompt length (9) leaves no room")))}, "wait"))
    with pytest.raises(ValueError, match="leaves no room"):
        asyncio.run(ask(client))


def explorer(policy: str, **others) -> LiveExplorer:
    return LiveExplorer(model_path="m", on_failure=policy, **others)


def next_sampler(policy: str, router, failures: int = 1, **others) -> str:
    async def go() -> str:
        client, session = client_of(router), SessionFaults(explorer(policy, **others))
        client.server, sampler = "a", ""
        for _ in range(failures):
            sampler = await session.next_sampler(client, ExplorerFailed("no answer"))
            router.add_servers({"a": None})
        return sampler

    return asyncio.run(go())


def test_the_learner_takes_over_at_once() -> None:
    router = ExplorerRouter({"a": None}, policy="learner")
    assert next_sampler("learner", router) == "learner"
    assert router.status()["suspects"] == {} and router.status()["failed_requests"] == 1


def test_fail_ends_the_session() -> None:
    router = ExplorerRouter({"a": None}, policy="fail")
    with pytest.raises(ExplorerFailed):
        next_sampler("fail", router)
    assert router.status()["given_up"] == "a: no answer"


def test_a_waiting_session_goes_on_when_the_explorer_is_back(monkeypatch) -> None:
    monkeypatch.setattr(explorer_client, "POLL_S", 0.01)
    router = ExplorerRouter({"a": None}, policy="wait")

    async def go() -> str:
        client = client_of(router)
        client.server = "a"
        waiting = asyncio.create_task(SessionFaults(explorer("wait")).next_sampler(client, ExplorerFailed("dead")))
        await asyncio.sleep(0.1)
        assert not waiting.done()
        router.add_servers({"b": None})
        return await waiting

    assert asyncio.run(go()) == "explorer"


def test_a_waiting_session_ends_with_the_explorer(monkeypatch) -> None:
    monkeypatch.setattr(explorer_client, "POLL_S", 0.01)
    router = ExplorerRouter({}, policy="wait")
    router.give_up("restarts are used up")
    with pytest.raises(ExplorerFailed):
        next_sampler("wait", router)


def test_a_request_that_fails_time_and_again_does_not_wait_for_ever() -> None:
    """Two restarts allowed, so three tries."""
    router = ExplorerRouter({"a": None, "b": None}, policy="wait")
    assert next_sampler("wait", router, failures=2, max_restarts=2) == "explorer"
    with pytest.raises(ExplorerFailed):
        next_sampler("wait", router, failures=3, max_restarts=2)
    assert router.status()["given_up"] == "one session failed 3 times, at last: no answer"


# ---- the monitor ----------------------------------------------------------------------------------------------------


class Instantly:
    """Ray's calls on objects of this process."""

    def get(self, refs, timeout=None):
        if isinstance(refs, list):
            return [self.get(ref) for ref in refs]
        if inspect.iscoroutine(refs):
            return asyncio.run(refs)
        if isinstance(refs, Exception):
            raise refs
        return refs

    def wait(self, refs, num_returns=1, timeout=None):
        ready = [ref for ref in refs if ref != "hangs"]
        return ready, [ref for ref in refs if ref == "hangs"]


class Engine:
    """A replica whose health is said by ``answer`` and whose next starts end as listed."""

    def __init__(self, rank, starts=()) -> None:
        self.rank, self.answer, self.starts, self.kills = rank, "well", list(starts), 0
        self.address, self.handle, self.servers, self.gpus = f"server{rank}", rank, [], 1

    def ask(self):
        return [self.answer]

    def kill(self):
        self.kills += 1
        return []

    def start(self, timeout_s, over):
        result = self.starts.pop(0)
        if isinstance(result, Exception):
            raise result
        self.answer = "well"


class AtOnce:
    """A thread that runs when it is started."""

    def __init__(self, target, args, daemon) -> None:
        self.start = lambda: target(*args)


@pytest.fixture
def monitor_of(monkeypatch):
    def build(router, *engines, **settings):
        monkeypatch.setattr(explorer_health, "ray", Instantly())
        monkeypatch.setattr(explorer_health, "release", lambda groups: 0)
        monkeypatch.setattr(explorer_health, "Thread", AtOnce)
        limits = {"restart_backoff_s": 0.0, "health_interval_s": 1e-9, **settings}
        return HealthMonitor(explorer(router._policy, **limits), engines, Local(router), ExplorerHealthStats())

    return build


def test_a_hung_server_is_replaced_and_takes_requests_again(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="learner"), Engine(0, starts=[None])
    monitor = monitor_of(router, engine)
    engine.answer = "hangs"
    monitor.poll_once()
    assert engine.kills == 1 and monitor.up == [engine] and router.status()["up"] == ["server0"]
    assert monitor._stats.restarts == 1


def test_a_restart_that_fails_uses_up_a_restart(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0, starts=[TimeoutError("no room"), None])
    monitor = monitor_of(router, engine, max_restarts=2)
    engine.answer = RuntimeError("died")
    monitor.poll_once()
    assert monitor._restarts == 2 and monitor.up == [engine] and router.status()["given_up"] is None


def test_restarts_wait_twice_as_long_each_time_and_end(monitor_of, monkeypatch) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0, starts=[TimeoutError("no room")] * 4)
    monitor, waited = monitor_of(router, engine, max_restarts=4, restart_backoff_s=10.0), []
    monkeypatch.setattr(monitor._over, "wait", lambda seconds: waited.append(seconds))
    engine.answer = RuntimeError("died")
    monitor.poll_once()
    assert waited == [10, 20, 40, 80] and monitor._restarts == 4 and monitor.up == [] and engine.starts == []


def test_used_up_restarts_are_the_end_and_named(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0, starts=[TimeoutError("no room")])
    monitor = monitor_of(router, engine, max_restarts=1)
    engine.answer = RuntimeError("died")
    monitor.poll_once()
    said = router.status()["given_up"]
    assert said.startswith("s2l.explorer.max_restarts=1 are used up, at last: restart failed: TimeoutError: no room")
    assert router.status()["up"] == [] and monitor.up == []


def test_with_one_of_two_left_the_run_goes_on(monitor_of) -> None:
    router = ExplorerRouter({"server0": 0, "server1": 1}, policy="wait")
    dead, alive = Engine(0), Engine(1)
    monitor = monitor_of(router, dead, alive, max_restarts=1)
    monitor._restarts = 1
    dead.answer = RuntimeError("died")
    monitor.poll_once()
    assert router.status()["up"] == ["server1"] and router.status()["given_up"] is None


def test_fail_starts_nothing_again(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="fail"), Engine(0, starts=[None])
    monitor = monitor_of(router, engine)
    engine.answer = RuntimeError("died")
    monitor.poll_once()
    assert engine.starts == [None] and router.status()["given_up"] == "server server0: RuntimeError: died"


def test_a_complaint_about_a_healthy_server_is_forgotten(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0)
    monitor = monitor_of(router, engine, health_interval_s=1e9)
    router.report("server0", "no answer within 5 s")
    monitor.poll_once()
    assert router.status()["up"] == ["server0"] and engine.kills == 0


def test_what_cannot_be_cleared_away_does_not_stop_the_restart(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0, starts=[None])
    monitor = monitor_of(router, engine)
    engine.answer, engine.kill = RuntimeError("died"), lambda: [][1]
    monitor.poll_once()
    assert monitor.up == [engine] and router.status()["up"] == ["server0"]


def test_a_server_that_is_ready_after_the_schedules_end_is_ended(monitor_of) -> None:
    router, engine = ExplorerRouter({"server0": 0}, policy="wait"), Engine(0)
    monitor = monitor_of(router, engine)
    engine.start = lambda timeout_s, over: monitor._over.set()
    engine.answer = RuntimeError("died")
    monitor.poll_once()
    assert engine.kills == 2 and monitor.up == [] and router.status()["up"] == []


def test_processes_are_ended_also_stopped_ones_and_no_others() -> None:
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    process.send_signal(signal.SIGSTOP)
    created = psutil.Process(process.pid).create_time()
    assert kill_processes([(process.pid, created - 100), (2**22 - 1, 0.0)]) == 0
    assert process.poll() is None
    assert kill_processes([(process.pid, created)]) == 1
    assert process.wait(10) == -signal.SIGKILL


class Actor:
    def __init__(self, *answers) -> None:
        self.answers = list(answers)
        self.__ray_call__ = SimpleNamespace(remote=lambda fn: self.answers.pop(0))


def test_a_restarted_actor_is_counted_and_a_dead_one_ends_the_run(monkeypatch) -> None:
    from ray.exceptions import ActorDiedError, ActorUnavailableError

    monkeypatch.setattr(faults.ray, "get", Instantly().get)
    monkeypatch.setattr(faults.ray, "wait", Instantly().wait)
    again = Actor(7, 7, ActorUnavailableError("restarting", b"0" * 16), 8, 8)
    actors = faults.Actors({"reward worker 0": again})
    for _ in range(5):
        actors.check()
    assert actors.restarts == 1
    with pytest.raises(S2LError, match=r"agent-loop worker 1 died and is not started again\. The same command resumes"):
        faults.Actors({"agent-loop worker 1": Actor(ActorDiedError())}).check()
