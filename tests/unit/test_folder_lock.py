"""Two runs never write to one folder; what a dead one left behind does not stop the next."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from s2l_ext.errors import DataError, ResourceError
from s2l_ext.utils import run_lock as folder_lock
from s2l_ext.utils.jsonl import Journal
from s2l_ext.utils.run_lock import FILE_NAME, held, is_held

HOLDER = """
import sys, time
from pathlib import Path
from s2l_ext.utils.run_lock import held
with held(Path(sys.argv[1]), "training run", "Wait"):
    print("held", flush=True)
    time.sleep(60)
"""


def run(folder):
    return held(folder, "training run", "Wait for it")


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(10)


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def refuse(*_):
        raise OSError(errno.ENOTSUP, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)


def leave(folder, pid, host=None):
    (folder / FILE_NAME).write_text(json.dumps({"pid": pid, "host": host or socket.gethostname(), "token": "t"}))


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(10)
    return process.pid


@pytest.mark.slow
def test_the_second_is_refused_with_the_firsts_process_and_host(tmp_path, holder):
    wanted = rf"another training run works here: process {holder.pid} on host {socket.gethostname()}\. Wait for it\."
    with pytest.raises(ResourceError, match=wanted), run(tmp_path):
        pass
    assert is_held(tmp_path)


def test_a_killed_holder_is_followed_at_once(tmp_path, holder):
    holder.send_signal(signal.SIGKILL)
    holder.wait(10)
    assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == holder.pid
    taken = []
    with held(tmp_path, "training run", "Wait", "mine", taken.append):
        assert json.loads((tmp_path / FILE_NAME).read_text()) == {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "token": "mine",
        }
    assert [left["pid"] for left in taken] == [holder.pid]
    assert (tmp_path / FILE_NAME).read_text() == "" and not is_held(tmp_path)


def test_another_hosts_lock_is_refused_with_the_fix(tmp_path):
    leave(tmp_path, 7, "node-9")
    wanted = rf"process 7 on host node-9\..*If that host is gone.*remove {tmp_path / FILE_NAME}\."
    with pytest.raises(ResourceError, match=wanted), run(tmp_path):
        pass
    (tmp_path / FILE_NAME).unlink()
    with run(tmp_path):
        pass


def test_it_is_freed_when_the_run_fails(tmp_path):
    with pytest.raises(RuntimeError, match="training failed"), run(tmp_path):
        raise RuntimeError("training failed")
    with run(tmp_path):
        assert is_held(tmp_path)


def test_damaged_content_is_no_holder(tmp_path):
    (tmp_path / FILE_NAME).write_text("{")
    assert not is_held(tmp_path)
    with run(tmp_path):
        assert is_held(tmp_path) and json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()


@pytest.mark.usefixtures("no_locks")
def test_without_kernel_locks_a_living_process_is_refused_and_a_dead_one_followed(tmp_path):
    leave(tmp_path, os.getppid())
    with pytest.raises(ResourceError, match=f"process {os.getppid()} on host"), run(tmp_path):
        pass
    leave(tmp_path, dead_pid())
    with run(tmp_path):
        assert json.loads((tmp_path / FILE_NAME).read_text())["pid"] == os.getpid()
    for pid in ("7", None):
        leave(tmp_path, pid)
        with run(tmp_path):
            pass


@pytest.mark.usefixtures("no_locks")
def test_without_kernel_locks_lines_are_written_all_the_same(tmp_path):
    journal = Journal(tmp_path / "lines.jsonl", "another evaluation writes this file")
    journal.add(b"1\n")
    journal.replace([b"2\n"])
    journal.add(b"3\n")
    journal.close()
    assert (tmp_path / "lines.jsonl").read_bytes() == b"2\n3\n"


@pytest.mark.parametrize("below", ["", "out"])
def test_a_file_in_the_place_of_the_folder_is_named(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    wanted = r"file.*: cannot be written \(.*\)\. Choose another folder"
    with pytest.raises(DataError, match=wanted), run(tmp_path / "file" / below):
        pass


def test_a_missing_folder_is_made_and_nobody_holds_it(tmp_path):
    assert not is_held(tmp_path / "new")
    with run(tmp_path / "new" / "run"):
        assert is_held(tmp_path / "new" / "run")
    assert folder_lock.FILE_NAME == ".lock"
