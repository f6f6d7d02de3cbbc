"""Commands under supervision: exit codes, what they leave behind, what ends with whom, their memory and their log."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from s2l_ext.utils import processes
from s2l_ext.utils.follow import last_lines
from s2l_ext.utils.processes import end_marked, run_supervised

DETACHED = (
    "import subprocess, sys; child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'], "
    "start_new_session=True); print(child.pid, flush=True); "
)


def nothing() -> None:
    """A tick."""


def guardian(*command: str, **options) -> subprocess.Popen:
    words = [sys.executable, "-m", "s2l_ext.utils.processes", *command]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def require_gone(pid: int) -> None:
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_exit_codes_pass_through(tmp_path) -> None:
    for command, code in ((("true",), 0), (("sh", "-c", "exit 3"), 3), (("sh", "-c", "kill -9 $$"), 137)):
        assert guardian(*command).wait(20) == code
        assert run_supervised(command, tmp_path / "log", nothing).returncode == code


def test_a_daemon_that_hides_from_its_parent_ends_with_the_pipe() -> None:
    process = guardian("sh", "-c", "env -i setsid sh -c 'sleep 60 & echo $!; wait' & sleep 60")
    assert process.stdout is not None and process.stdin is not None
    daemon = int(process.stdout.readline())
    process.stdin.close()
    process.wait(20)
    require_gone(daemon)


def test_what_a_command_leaves_behind_ends_with_it(tmp_path) -> None:
    ended = run_supervised([sys.executable, "-c", DETACHED], tmp_path / "log", nothing)
    assert ended.returncode == 0
    require_gone(int(last_lines(tmp_path / "log", 1)[0]))


def test_an_interrupt_ends_the_command(tmp_path) -> None:
    pids: list[int] = []

    def interrupt() -> None:
        pids.extend(int(word) for word in last_lines(tmp_path / "log", 1) if word.isdigit())
        if pids:
            raise KeyboardInterrupt

    script = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    with pytest.raises(KeyboardInterrupt):
        run_supervised([sys.executable, "-c", script], tmp_path / "log", interrupt)
    require_gone(pids[0])


def test_what_outlived_its_guardian_is_found_by_its_marker() -> None:
    environment = {**os.environ, processes.MARKER: "of-this-test"}
    process = guardian(sys.executable, "-c", f"{DETACHED}import time; time.sleep(60)", env=environment)
    assert process.stdout is not None
    daemon = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.wait(20)
    end_marked("of-another")
    assert psutil.Process(daemon).status() != psutil.STATUS_ZOMBIE
    end_marked("of-this-test")
    require_gone(daemon)


@pytest.mark.slow
def test_the_log_is_continued_after_the_command_without_its_secrets(tmp_path) -> None:
    secret = "hf_" + "aB3" * 11
    for _ in range(2):
        run_supervised(["echo", f"token={secret}"], tmp_path / "log", nothing)
    first, *_ = lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 4 and first.startswith("$ echo token=") and secret not in first


@pytest.mark.slow
def test_peak_memory_counts_children(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(processes, "MEMORY_SECONDS", 0.2)
    child = "import time; block = bytearray(300_000_000); time.sleep(1)"
    script = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    ended = run_supervised([sys.executable, "-c", script], tmp_path / "log", nothing, measure_memory=True)
    assert 0.3e9 < ended.peak_bytes < 0.6e9
