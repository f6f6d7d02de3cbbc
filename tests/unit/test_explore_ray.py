"""Several engines, without Ray: its calls are answered here, so that what is asked of it can be seen."""

from __future__ import annotations

import random
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import ray

from s2l_ext.errors import ResourceError
from s2l_ext.evaluation.engines import Machine, Request, Response, Sampling, Setup
from s2l_ext.explore import ray_pool
from s2l_ext.explore.ray_pool import RayPool, Worker
from s2l_ext.explore.run import Placement, dtype_of, open_pool


class Engine:
    """Holds three requests, answers one a step."""

    def __init__(self) -> None:
        self.held: list[Request] = []
        self.answered: list[int] = []
        self.closed = False

    def add(self, requests: list[Request]) -> None:
        self.held += requests
        assert len(self.held) <= 3

    @property
    def room(self) -> int:
        return 3 - len(self.held)

    @property
    def unfinished(self) -> int:
        return len(self.held)

    def step(self) -> list[Response]:
        request = self.held.pop(0)
        self.answered.append(request.index)
        return [Response(request, [1], False, [0.0])]

    def close(self) -> None:
        self.closed = True


class Call:
    """What Ray would compute later; done when it is asked for."""

    def __init__(self, run: Any) -> None:
        self.run = run


def later(method: Any) -> Any:
    return lambda *args: Call(lambda: method(*args))


class FakeRay:
    """Actors in this process. Calls finish in random order."""

    def __init__(self, cpus: int = 4, gpus: int = 0) -> None:
        self.resources = {"CPU": float(cpus), **({"GPU": float(gpus)} if gpus else {})}
        self.options: list[dict[str, Any]] = []
        self.killed: list[Any] = []
        self.inits: list[dict[str, Any]] = []
        self.exceptions = ray.exceptions

    def is_initialized(self) -> bool:
        return bool(self.inits)

    def init(self, **options: Any) -> None:
        self.inits.append(options)

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def remote(self, worker: type) -> Any:
        def make() -> Any:
            actor = worker()
            names = ("load", "advance", "close")
            return SimpleNamespace(**{name: SimpleNamespace(remote=later(getattr(actor, name))) for name in names})

        return SimpleNamespace(options=lambda **given: self.options.append(given) or SimpleNamespace(remote=make))

    def wait(self, calls: list[Call], num_returns: int, timeout: float | None = None) -> tuple[list[Call], list[Call]]:
        done = random.sample(calls, num_returns)
        if timeout is not None:
            for call in done:
                call.run()
        return done, [call for call in calls if call not in done]

    def get(self, call: Call) -> Any:
        return call.run()

    def kill(self, actor: Any) -> None:
        self.killed.append(actor)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_pool, "TURN_SECONDS", 0.0)

    def install(**resources: int) -> FakeRay:
        made = FakeRay(**resources)
        monkeypatch.setattr(ray_pool, "ray", made)
        return made

    return install


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Engine]:
    made: list[Engine] = []
    monkeypatch.setattr(Setup, "engine", lambda self: made.append(Engine()) or made[-1])
    return made


def setup(**machine: Any) -> Setup:
    return Setup(SimpleNamespace(name="toy"), Sampling(), Machine(**machine), 64)  # type: ignore[arg-type]


def requests(count: int) -> Iterator[Request]:
    return (Request("a", index, [1], index) for index in range(count))


@pytest.fixture
def one_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn is one step: the clock passes between two looks at it."""
    ticks = iter(range(10**6))
    monkeypatch.setattr(ray_pool, "time", SimpleNamespace(monotonic=lambda: next(ticks) / 2))
    monkeypatch.setattr(ray_pool, "TURN_SECONDS", 0.75)


@pytest.mark.parametrize("count", [0, 1, 2, 50])
def test_every_request_is_answered_once_by_some_engine(fake, engines, one_step, count: int) -> None:
    cluster = fake()
    pool = RayPool(setup(), 3)
    drawn = [response.request.index for some in pool.draw(requests(count)) for response in some]
    assert sorted(drawn) == list(range(count))
    assert len(engines) == 3 and sum(len(each.answered) for each in engines) == count
    if count == 50:
        assert all(each.answered for each in engines), "no engine stands idle while there is work"
    pool.close()
    assert len(cluster.killed) == 3 and all(each.closed for each in engines)


def test_engines_on_cpus_share_the_cores(fake, engines) -> None:
    cluster = fake()
    RayPool(setup(), 2)
    assert cluster.inits[0]["address"] is None
    for options in cluster.options:
        assert options["num_cpus"] == 1 and "num_gpus" not in options
        variables = options["runtime_env"]["env_vars"]
        assert variables["VERL_PLATFORM"] == "cpu" and variables["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"


def test_engines_on_gpus_take_what_one_model_needs(fake, engines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VERL_PLATFORM")
    cluster = fake(gpus=4)
    RayPool(setup(tensor_parallel=2), 2, "ray.example:6379")
    assert cluster.options == [{"num_cpus": 1, "num_gpus": 2}] * 2
    assert cluster.inits[0]["address"] == "ray.example:6379" and "include_dashboard" not in cluster.inits[0]
    assert dtype_of(Machine(), Placement(1, "ray.example:6379")) == "auto"
    assert dtype_of(Machine("float16"), Placement(1, "ray.example:6379")) == "float16"


def test_what_the_cluster_does_not_have_is_refused(fake, engines, monkeypatch: pytest.MonkeyPatch) -> None:
    fake(cpus=2)
    with pytest.raises(ResourceError, match="--engines 3: needs 3 CPUs .*has 2"):
        RayPool(setup(), 3)
    monkeypatch.delenv("VERL_PLATFORM")
    fake(cpus=16, gpus=4)
    with pytest.raises(ResourceError, match=r"--engines 3: needs 6 GPUs \(2 each\); the Ray cluster has 4"):
        RayPool(setup(tensor_parallel=2), 3, "auto")
    assert engines == []


def test_no_cluster_at_the_address(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = fake()

    def nobody(**options: Any) -> None:
        raise ConnectionError("Could not find any running Ray instance")

    monkeypatch.setattr(cluster, "init", nobody)
    with pytest.raises(ResourceError, match="--ray-address auto: no Ray cluster answers .*ray start --head"):
        RayPool(setup(), 1, "auto")
    with pytest.raises(ResourceError, match="no Ray cluster answers"):
        dtype_of(Machine(), Placement(1, "auto"))


def test_a_model_that_an_engine_cannot_load(fake, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = fake()
    refusal = ResourceError("--engine vllm: toy cannot be loaded")

    def load(self: Worker, given: Setup) -> None:
        raise ray.exceptions.RayTaskError("load", "traceback", refusal).as_instanceof_cause()

    monkeypatch.setattr(Worker, "load", load)
    monkeypatch.setattr(Worker, "close", lambda self: None)
    with pytest.raises(ResourceError, match="^--engine vllm: toy cannot be loaded$"):
        RayPool(setup(), 2)
    assert len(cluster.killed) == 2


def test_an_engine_that_dies_is_a_refusal(fake, engines, monkeypatch: pytest.MonkeyPatch) -> None:
    fake()

    def die(self: Worker, given: list[Request]) -> None:
        raise ray.exceptions.ActorDiedError

    monkeypatch.setattr(Worker, "advance", die)
    pool = RayPool(setup(), 2)
    with pytest.raises(ResourceError, match=r"an engine's process ended .*run the same command again"):
        list(pool.draw(requests(5)))


def test_a_turn_ends_in_time(engines, one_step) -> None:
    worker = Worker()
    worker.load(setup())
    found, room, unfinished = worker.advance(list(requests(3)))
    assert (len(found), room, unfinished) == (1, 1, 2)
    found, room, unfinished = worker.advance(list(requests(1)))
    assert (len(found), room, unfinished) == (1, 1, 2)


def test_several_engines_go_through_ray(fake, engines) -> None:
    fake()
    pool = open_pool(setup(), Placement(2))
    assert isinstance(pool, RayPool)
    assert open_pool(setup(), Placement()) is engines[-1]
