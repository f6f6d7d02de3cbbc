"""Levels, refusals and the pool."""

# ruff: noqa: E501 - a program a line
from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.rewards.code import run_tests
from s2l_ext.sandbox import levels as sandbox_levels
from s2l_ext.sandbox import runner as sandbox
from s2l_ext.sandbox import wire as sandbox_wire
from s2l_ext.sandbox.runner import PRIVATE, Level, Limits, Sandbox, SandboxUnavailable, active_level

pytestmark = pytest.mark.slow

SEE = "import json, os, sys\nprint(json.dumps([os.getpid(), os.getuid(), sorted(os.environ), os.getcwd(), sys.argv]))"


def pool_of(level: Level, **arguments) -> Sandbox:
    try:
        return Sandbox(level, **{"workers": 1, **arguments})
    except SandboxUnavailable as error:
        pytest.skip(f"sandbox level {level.name.lower()} does not work here: {error}")


@pytest.fixture(params=list(Level), ids=lambda level: level.name.lower())
def pool(request):
    made = pool_of(request.param)
    yield made
    made.close()


def test_every_level_runs_programs_in_a_clean_environment(pool, monkeypatch):
    monkeypatch.setenv("S2L_TEST_SECRET", "x")
    finished = pool.run(SEE, "", 10)
    pid, uid, names, folder, arguments = json.loads(finished.stdout)
    assert set(names) <= {*sandbox_levels.ENVIRONMENT, "PWD"} and arguments == ["program.py"]
    assert finished.status == 0 and finished.reason == "" and finished.stderr == ""
    if pool.inner == "namespaces":
        assert pid == 1 and folder == PRIVATE
        assert uid != 0
    assert run_tests("def f(): return 1", "assert f() == 1", 10, pool=pool, minimum_level=Level.LIMITS).passed


def test_nothing_is_left_between_programs(pool):
    pool.run("import os\nos.makedirs('a/b')\nopen('a/b/c', 'w').write('x')\nos.mkdir('d', 0)", "", 10)
    assert pool.run("import os\nprint(os.listdir('.'))", "", 10).stdout == "[]\n"


def test_descriptors_are_only_those_of_the_job(pool):
    source = "import os\nfound = []\nfor n in range(64):\n    try: os.fstat(n); found.append(n)\n    except OSError: pass\nprint(found)"
    assert pool.run(source, "", 10).stdout == "[0, 1, 2]\n"


def test_random_numbers_differ_and_hashes_do_not(pool):
    runs = [pool.run("import random\nprint(random.random(), hash('x'))", "", 10).stdout.split() for _ in "ab"]
    assert runs[0][0] != runs[1][0] and runs[0][1] == runs[1][1]


def test_detection_takes_the_highest_level_that_works():
    best = Sandbox(workers=1)
    best.close()
    assert all(level in best.refused for level in Level if level > best.level)
    assert best.level == active_level()


def test_below_the_minimum_is_refused(monkeypatch):
    pool = pool_of(Level.LIMITS)
    with pytest.raises(
        SandboxUnavailable, match=r"level limits, below the minimum landlock.*bubblewrap.*minimum_level"
    ):
        run_tests("x = 1", "assert x == 1", 5, pool=pool)
    monkeypatch.setenv(sandbox.MINIMUM_VARIABLE, "namespaces")
    with pytest.raises(ResourceError, match="below the minimum namespaces"):
        run_tests("x = 1", "assert x == 1", 5, pool=pool)
    monkeypatch.setenv(sandbox.MINIMUM_VARIABLE, "limits")
    assert run_tests("x = 1", "assert x == 1", 5, pool=pool).passed
    pool.close()


def test_unknown_level_is_refused(monkeypatch):
    monkeypatch.setenv(sandbox.MINIMUM_VARIABLE, "iron")
    with pytest.raises(ConfigError, match="'iron' is unknown; use one of limits, landlock, namespaces, bubblewrap"):
        run_tests("x = 1", "assert x == 1", 5)


@pytest.mark.parametrize("name", [sandbox.WORKERS_VARIABLE, sandbox.LEVEL_VARIABLE])
def test_bad_settings_of_the_environment(name, monkeypatch):
    monkeypatch.setattr(sandbox, "_default", None)
    monkeypatch.setenv(name, "many")
    with pytest.raises(ConfigError, match="many"):
        sandbox.default()


def test_packages_can_be_shown_to_programs():
    folder = Path("/var/tmp") / f"s2l-packages-{os.getpid()}"
    folder.mkdir(mode=0o755)
    (folder / "my_package.py").write_text("VALUE = 7\n")
    try:
        for level in (Level.NAMESPACES, Level.LANDLOCK):
            pool = pool_of(level, packages=[str(folder)])
            assert pool.run("import my_package\nprint(my_package.VALUE)", "", 10).stdout == "7\n"
            pool.close()
    finally:
        shutil.rmtree(folder)


def test_packages_that_cannot_be_shown_are_refused():
    """A folder that is not there, and one that is there but lies where programs see their own."""
    with tempfile.TemporaryDirectory(dir=PRIVATE) as hidden:
        for path in ("no/such/packages", hidden):
            with pytest.raises(ConfigError, match=f"must be an existing folder outside {PRIVATE}"):
                Sandbox(packages=[path])


def test_a_killed_zygote_is_replaced():
    pool = Sandbox(workers=1)
    pool._idle[0]._process.kill()
    pool._idle[0]._process.wait(10)
    assert pool.run("print(1)", "", 10).stdout == "1\n"
    pool.close()


def test_processes_that_died_while_idle_do_not_use_up_the_second_try():
    pool = Sandbox(workers=2)
    pool._idle += [pool._take(), pool._take()]
    for worker in pool._idle:
        worker._process.kill()
        worker._process.wait(10)
    assert len(pool._idle) == 2
    assert pool.run("print(7)", "", 10).stdout == "7\n"
    pool.close()


def test_a_pool_whose_zygotes_always_die_says_so(monkeypatch):
    pool = Sandbox(workers=1)
    monkeypatch.setattr(sandbox.Worker, "fork", lambda *_: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(SandboxUnavailable, match="the sandbox failed twice: gone"):
        pool.run("print(1)", "", 10)
    pool.close()


def test_many_threads_share_two_workers():
    pool = Sandbox(workers=2)
    with ThreadPoolExecutor(8) as threads:
        outputs = list(threads.map(lambda n: pool.run("print(input())", str(n), 20).stdout, range(24)))
    assert outputs == [f"{n}\n" for n in range(24)]
    assert len(pool._idle) <= 2
    pool.close()


def test_threads_that_end_do_not_take_their_zygote_along():
    pool = Sandbox(workers=2)
    threads = [threading.Thread(target=pool.run, args=("print(1)", "", 20)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pool.run("print(2)", "", 20).stdout == "2\n"
    pool.close()


@pytest.mark.parametrize("level", [Level.NAMESPACES, Level.LANDLOCK])
def test_zygotes_end_with_their_parent(level):
    pool_of(level).close()
    script = (
        "import sys, time\nfrom s2l_ext.sandbox.runner import Level, Sandbox\n"
        f"pool = Sandbox(Level({int(level)}), workers=1)\nprint(pool._idle[0]._process.pid, pool._idle[0]._scratch, flush=True)\n"
        "pool.run('while True: pass', '', 60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    pid, scratch = parent.stdout.readline().split()
    zygote = psutil.Process(int(pid))
    deadline = time.monotonic() + 20
    while len(family := [zygote, *zygote.children(recursive=True)]) < level and time.monotonic() < deadline:
        time.sleep(0.02)
    assert len(family) == level, "zygote and program, and a launcher at level namespaces"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert not alive
    assert not os.path.exists(scratch)


def test_no_folder_is_left_after_closing():
    pool = pool_of(Level.LANDLOCK)
    scratch = pool._idle[0]._scratch
    assert os.path.isdir(scratch)
    pool.close()
    assert not os.path.exists(scratch)


def test_time_is_wall_time():
    pool = Sandbox(workers=1)
    started = time.monotonic()
    finished = pool.run("import time\ntime.sleep(30)", "", 0.3)
    assert finished.reason == "out of time" and time.monotonic() - started < 5
    pool.close()


def test_output_is_cut_at_its_limit():
    pool = Sandbox(workers=1)
    finished = pool.run("while True: print('x' * 1000)", "", 20, Limits(output_bytes=10**5))
    assert finished.reason == "more than 100000 bytes of output"
    pool.close()


@pytest.mark.parametrize(
    "value",
    [None, True, 0, -(2**70), 1.5, float("inf"), "é\ud800", b"\0", [], (), {}, set(), [1, (2, {3: [4]})], {(1, 2): 3}, 1 + 2j],
)  # fmt: skip
def test_values_cross_the_wire_unchanged(value):
    data = json.loads(json.dumps(sandbox_wire.encode(value, lambda each: ["h", 0])))
    back = sandbox_wire.decode(data, lambda each: each)
    assert back == value and type(back) is type(value)


@pytest.mark.parametrize(
    "data", [{}, [], ["?"], ["i", "zz"], ["d", [1]], ["s", ["l"]], ["r", 1, 2, 0], ["b", "x"], ["F", "0x1", "0x0"]]
)
def test_malformed_values_are_refused(data):
    def special(each):
        raise ValueError(each)

    with pytest.raises(sandbox_wire.LinkClosed):
        sandbox_wire.decode(data, special)
