"""Ray's workers of a run on the CPU are forks of one process, and cannot be told from workers of the usual kind."""

import itertools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import ray

from s2l_ext.platforms import forked_workers

pytestmark = [pytest.mark.contract, pytest.mark.slow]

OWN = {"S2L_PROBE": "job", "VERL_PLATFORM": "cpu"}


@pytest.fixture(scope="module")
def server():
    """A Ray of two CPUs whose workers the server forks."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    command = forked_workers.start({"S2L_PROBE": "server"})
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        runtime_env={"py_executable": command, "env_vars": OWN},
    )
    yield psutil.Process(forked_workers._server.pid)
    ray.shutdown()
    forked_workers._server.stdin.close()
    forked_workers._server.wait(30)


def look() -> dict:
    """What a worker sees of itself."""
    import gc
    import os
    import random
    import signal
    import sys
    from pathlib import Path

    before, collects_at = set(sys.modules), gc.get_threshold()
    import numpy
    import torch

    of_this_one = ("_", "SHLVL", "S2L_NUMBER", "RAY_JOB_CONFIG_JSON_ENV_VAR")
    return {
        "parent": os.getppid(),
        "path": set(sys.path),
        "collects_at": collects_at,
        "imported": before & {"torch", "verl", "vllm", "transformers"},
        "random": (random.random(), numpy.random.random(), torch.initial_seed()),
        "same": {
            "threads": torch.get_num_threads(),
            "variables": {name: value for name, value in os.environ.items() if name not in of_this_one},
            "arguments": [one.partition("=")[0] for one in sys.argv],
            "main": sys.modules["__main__"].__file__,
            "folder": os.getcwd(),
            "standard_input": os.readlink("/proc/self/fd/0"),
            "own_group": os.getpgrp() == os.getpid(),
            "niceness": os.getpriority(os.PRIO_PROCESS, 0),
            "oom_score": Path("/proc/self/oom_score_adj").read_text(),
            "hears_of_children": signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL,
        },
    }


def asked(number: int, cpus: int, **runtime_env) -> dict:
    """What a new worker says: Ray takes no worker of another environment."""
    variables = {"env_vars": {"S2L_NUMBER": str(number)}}
    return ray.get(ray.remote(look).options(num_cpus=cpus, runtime_env=variables | runtime_env).remote(), timeout=120)


def test_a_forked_worker_differs_from_one_of_the_usual_kind_in_what_it_has_imported_only(server) -> None:
    forked, plain = asked(1, 2), asked(2, 2, py_executable=sys.executable)
    assert forked["parent"] == server.pid != plain["parent"]
    assert forked["imported"] >= {"torch", "transformers"} and plain["imported"] == set()
    assert forked["same"] == plain["same"] and forked["path"] >= plain["path"]
    assert forked["same"]["threads"] == 2 and forked["same"]["variables"]["S2L_PROBE"] == "job"
    assert forked["same"]["oom_score"] == "1000\n"
    assert forked["collects_at"] == (100_000, 50, 100) and plain["collects_at"][0] == 700


def test_forks_draw_other_numbers_and_the_last_ones_have_everything(server) -> None:
    first, second = asked(3, 1), asked(4, 1)
    assert all(one != other for one, other in zip(first["random"], second["random"], strict=True))
    assert first["same"]["threads"] == 1
    wait_until(lambda: "vllm" in asked(5, 1)["imported"])


def threads_told() -> tuple[str, int]:
    import os

    import ray
    import torch

    os.environ.pop("OMP_NUM_THREADS")
    torch.set_num_threads(1)
    ray._private.utils.set_omp_num_threads_if_unset()
    return os.environ["OMP_NUM_THREADS"], torch.get_num_threads()


def test_ray_still_tells_a_worker_of_its_threads_by_a_variable_alone(server) -> None:
    ways = ({"py_executable": sys.executable}, {"env_vars": {"S2L_NUMBER": "threads"}})
    calls = [ray.remote(threads_told).options(num_cpus=2, runtime_env=way).remote() for way in ways]
    assert ray.get(calls, timeout=120) == [("2", 1), ("2", 2)]


def test_an_actor_that_is_killed_leaves_nothing_and_can_be_started_again(server) -> None:
    class Counter:
        def pid(self) -> int:
            import os

            return os.getpid()

    for number in range(2):
        actor = ray.remote(Counter).options(num_cpus=1, runtime_env={"env_vars": {"S2L_NUMBER": f"actor {number}"}})
        handle = actor.remote()
        process = psutil.Process(ray.get(handle.pid.remote(), timeout=120))
        assert process.ppid() == server.pid
        ray.kill(handle)
        wait_until(lambda gone=process: not gone.is_running())


def test_without_its_server_a_worker_starts_as_usual(server) -> None:
    server.kill()
    wait_until(lambda: server.status() == psutil.STATUS_ZOMBIE)
    assert asked(6, 1)["imported"] == set()


# ---- the hand-over, without Ray ------------------------------------------------------------------------------------


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


ASK = "import sys; from s2l_ext.platforms import forked_workers as f; f.PATIENCE_SECONDS = {}; f.ask(*sys.argv[1:])"


def run_ask(folder: Path, patience: float) -> str:
    """What is printed by a command that the server did not take over."""
    words = [sys.executable, "-c", ASK.format(patience), str(folder), "-c", "print('started as usual')"]
    printed = folder / "printed"
    with printed.open("w") as stream:  # a pipe would stay open in the request
        subprocess.run(words, stdout=stream, timeout=60, check=True)
    return printed.read_text()


def test_who_waits_too_long_starts_as_usual_and_is_not_started_again(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        assert run_ask(tmp_path, 0.2) == "started as usual\n"
        connection, request, streams = forked_workers._read(listener)
        assert request["arguments"] == ["-c", "print('started as usual')"]
        assert not forked_workers._wanted(connection)
        forked_workers._close(*streams)


def test_who_is_answered_ends_at_once(tmp_path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(1)
        said: list[bool] = []

        def answer() -> None:
            connection, _, streams = forked_workers._read(listener)
            said.append(forked_workers._wanted(connection))
            forked_workers._close(*streams)

        server = threading.Thread(target=answer)
        server.start()
        assert run_ask(tmp_path, 60) == ""
        server.join()
        assert said == [True]


@pytest.mark.parametrize(
    ("seconds", "expected"), [(60, ["import a", "import b", "one", "two"]), (0, ["import a", "one", "two"])]
)
def test_workers_wait_for_the_imports_unless_these_take_long(tmp_path, monkeypatch, seconds, expected) -> None:
    """One asks before the imports. While the first module is imported one breaks off, and the next asks."""
    seen: list[str] = []
    clients: list[socket.socket] = []

    def send(text: str) -> None:
        clients.append(socket.socket(socket.AF_UNIX))
        clients[-1].connect(str(tmp_path / "socket"))
        socket.send_fds(clients[-1], [text.encode()], [0])

    def imports(*names: str) -> None:
        seen.extend(f"import {name}" for name in names)
        if names == ("a",):
            send('{"environment": ')
            clients.pop().close()
            send('{"environment": {}, "name": "two"}\n')

    monkeypatch.setattr(forked_workers, "BEFORE_RAY", ())
    monkeypatch.setattr(forked_workers, "WITH_RAY", ("a", "b"))
    monkeypatch.setattr(forked_workers, "IMPORT_SECONDS", seconds)
    monkeypatch.setattr(forked_workers, "_import", imports)
    driver, stdin = socket.socketpair()
    with driver, stdin, stdin.makefile() as reading, socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.setattr(sys, "stdin", reading)
        listener.bind(str(tmp_path / "socket"))
        listener.listen(4)
        send('{"environment": {}, "name": "one"}\n')
        for connection, request, streams in itertools.islice(forked_workers._requests(listener, str(tmp_path)), 2):
            seen.append(request["name"])
            forked_workers._close(connection.detach(), *streams)
    for client in clients:
        client.close()
    assert seen == expected


DRIVER = """
import time
from s2l_ext.platforms import forked_workers
print(forked_workers.start({}).split()[-1], forked_workers._server.pid, flush=True)
time.sleep(60)
"""


def test_the_server_ends_with_a_driver_that_is_killed() -> None:
    driver = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True)
    folder, pid = driver.stdout.readline().split()
    assert stat_mode(folder) == "700" and psutil.pid_exists(int(pid))
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    driver.stdout.close()
    wait_until(lambda: not psutil.pid_exists(int(pid)))
    assert not Path(folder).exists()


def stat_mode(folder: str) -> str:
    return f"{os.stat(folder).st_mode & 0o777:o}"
