"""The explorer's end while a restart is under way: nothing that it makes stays, and nothing of it is held."""

import inspect
import time
from threading import Event, Thread
from types import SimpleNamespace

import pytest
from ray.exceptions import ActorDiedError

from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.serving import health as explorer_health
from s2l_ext.methods.explorer.serving import replica as explorer_replica
from s2l_ext.methods.explorer.serving.health import ExplorerHealthStats, HealthMonitor
from s2l_ext.methods.explorer.serving.replica import Replica

pytestmark = pytest.mark.contract


class FakeRay:
    """Calls are their own results; an exception is raised when it is asked for."""

    def __init__(self) -> None:
        self.gpus, self.killed, self.looked = 0, [], Event()

    def get(self, refs, timeout=None):
        for ref in refs if isinstance(refs, list) else [refs]:
            if isinstance(ref, Exception):
                raise ref
        return refs

    def wait(self, refs, num_returns=1, timeout=None):
        ready = [ref for ref in refs if ref != "hangs"]
        return ready, [ref for ref in refs if ref == "hangs"]

    def kill(self, actor) -> None:
        self.killed.append(actor)

    def available_resources(self):
        self.looked.set()
        return {} if self.gpus is None else {"GPU": self.gpus}


class Verls:
    """verl's replica: makes a placement group, and a server once ``go_on`` is set."""

    def __init__(self) -> None:
        self.servers, self.workers, self.resource_pool, self.server_address = [], [], None, None
        self.server_handle = SimpleNamespace(generate=SimpleNamespace(remote=lambda **request: "a token"))
        self.placed, self.go_on = Event(), Event()

    async def init_standalone(self) -> None:
        self.resource_pool = SimpleNamespace(pgs=["group"])
        self.placed.set()
        self.go_on.wait(10)
        self.servers = [self.server_handle]


@pytest.fixture
def machine(monkeypatch):
    """Ray, and the placement groups that were given back to it."""
    fake, released = FakeRay(), []
    monkeypatch.setattr(explorer_replica, "get_resource_name", lambda: "GPU")
    monkeypatch.setattr(explorer_replica, "_find_processes", lambda replica: {})
    monkeypatch.setattr(explorer_replica, "_look_up", lambda actors: {})
    for module in (explorer_replica, explorer_health):
        monkeypatch.setattr(module, "ray", fake)
        monkeypatch.setattr(module, "release", released.extend)
    return fake, released


def dead_router():
    """As after ``ExplorerServers.stop``."""
    return SimpleNamespace(forget=SimpleNamespace(remote=lambda address: ActorDiedError()))


def restart(replica, seconds: float = 10.0) -> tuple[HealthMonitor, Thread]:
    """The monitor in the middle of bringing the replica back."""
    settings = LiveExplorer(model_path="m", on_failure="wait", restart_backoff_s=0.0, start_timeout_s=seconds)
    monitor = HealthMonitor(settings, [], dead_router(), ExplorerHealthStats())
    monitor._down.append(replica)
    thread = Thread(target=monitor._restart, args=(replica, "died"), daemon=True)
    thread.start()
    return monitor, thread


def stop(monitor: HealthMonitor) -> list:
    """What ``ExplorerServers.stop`` does with a monitor; returns the groups that it releases."""
    monitor._over.set()
    return [group for replica in monitor._down for group in replica.kill()]


def test_a_restart_that_waits_for_room_builds_nothing_after_the_end(machine) -> None:
    fake, released = machine
    built = []
    monitor, thread = restart(Replica(built.append, 1000, gpus=1))
    assert fake.looked.wait(10)
    assert stop(monitor) == []
    fake.gpus = 1
    thread.join(10)
    assert not thread.is_alive() and built == [] and released == []


def test_a_restart_waits_for_room_and_for_its_engine_and_knows_its_processes(machine, monkeypatch) -> None:
    """Ray does not list GPUs of which it has none; the engine takes longer than the second that is always left."""
    monkeypatch.setattr(explorer_replica, "_find_processes", lambda replica: {"n1": [(7, 1.0)]})
    fake, _ = machine
    fake.gpus, verls = None, Verls()
    replica = Replica(lambda suffix: verls, 1000, gpus=1)
    thread = Thread(target=replica.start, args=(60.0, Event()), daemon=True)
    thread.start()
    assert fake.looked.wait(10) and not verls.placed.wait(0.1)
    fake.gpus = 1
    assert verls.placed.wait(10)
    time.sleep(1.2)
    verls.go_on.set()
    thread.join(10)
    assert replica._processes == {"n1": [(7, 1.0)]}


@pytest.mark.parametrize("before_stop", [True, False])
def test_what_a_start_makes_after_the_end_is_ended_too_without_a_router(machine, before_stop) -> None:
    """The start goes on when it was killed already, or before."""
    fake, released = machine
    fake.gpus, verls = 1, Verls()
    monitor, thread = restart(Replica(lambda suffix: verls, 1000, gpus=1))
    assert verls.placed.wait(10)
    if before_stop:
        assert stop(monitor) == ["group"]
        assert fake.killed == []
    monitor._over.set()
    verls.go_on.set()
    thread.join(10)
    wait_for(lambda: fake.killed == [verls.server_handle] and released == ["group"])


def test_a_start_that_took_too_long_is_ended_whenever_it_comes_to_an_end(machine) -> None:
    fake, released = machine
    fake.gpus, verls = 1, Verls()
    monitor, thread = restart(Replica(lambda suffix: verls, 1000, gpus=1), seconds=0.1)
    assert verls.placed.wait(10)
    monitor._over.set()
    thread.join(10)
    assert not thread.is_alive() and released == ["group"] and fake.killed == []
    verls.go_on.set()
    wait_for(lambda: fake.killed == [verls.server_handle])


def wait_for(what) -> None:
    deadline = time.monotonic() + 10
    while not what() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert what()


# ---- processes that nobody told of -----------------------------------------------------------------------------------


class Actor:
    def __init__(self, name: str) -> None:
        self._actor_id = SimpleNamespace(hex=lambda: name)


@pytest.fixture
def table(monkeypatch):
    """Ray's table of actors, and what was killed in turn: processes by node, and actors."""
    fake, entries = FakeRay(), {}
    monkeypatch.setattr(explorer_replica, "ray", fake)
    monkeypatch.setattr(explorer_replica.ray_state, "actors", lambda name: entries[name])
    monkeypatch.setattr(explorer_replica, "_kill_on", lambda node, ids: fake.killed.append((node, ids)) or "killed")
    return fake, entries


def entry(state: str, node: str, pid: int) -> dict:
    return {"State": state, "Address": {"NodeID": node}, "Pid": pid}


def test_unknown_processes_are_looked_up_before_their_actors_are_killed(table, monkeypatch) -> None:
    fake, entries = table
    loading, worker, pending = Actor("loading"), Actor("worker"), Actor("pending")
    entries |= {"loading": entry("ALIVE", "n1", 7), "worker": entry("ALIVE", "n2", 8)}
    entries["pending"] = entry("PENDING_CREATION", "", 0)
    monkeypatch.setattr(explorer_replica, "_families_on", lambda node, pids: "hangs" if node == "n2" else tuple(pids))
    replica = Replica(lambda suffix: None, 1000, gpus=1)
    replica._verls = SimpleNamespace(servers=[loading, pending], workers=[worker], resource_pool=None)
    assert replica.kill() == []
    assert fake.killed == [("n1", (7,)), loading, pending, worker]


def test_rays_table_has_what_is_read_of_it() -> None:
    source = inspect.getsource(type(explorer_replica.ray_state.state)._gen_actor_info)
    assert all(f'"{key}":' in source for key in ("State", "Address", "NodeID", "Pid"))


def test_known_processes_are_not_looked_up(table) -> None:
    fake, _ = table
    server = Actor("dead, and in no table")
    replica = Replica(lambda suffix: None, 1000, gpus=1)
    replica._verls = SimpleNamespace(servers=[server], workers=[], resource_pool=None)
    replica._processes = {"n1": [(7, 1.0)]}
    assert replica.kill() == []
    assert fake.killed == [("n1", [(7, 1.0)]), server]


def test_a_table_that_does_not_answer_leaves_the_actors_to_be_killed(table) -> None:
    fake, _ = table
    server = Actor("in no table")
    replica = Replica(lambda suffix: None, 1000, gpus=1)
    replica._verls = SimpleNamespace(servers=[server], workers=[], resource_pool=None)
    assert replica.kill() == [] and fake.killed == [server]
