"""A clock that jumps changes no decision: time limits are monotonic, wall-clock seconds are only reported."""

import ast
import time
from pathlib import Path

import pytest

import s2l_ext
from s2l_ext.pipeline.plan import Entry
from s2l_ext.pipeline.runner import _close_attempt, _unwritten_seconds

ROOT = Path(s2l_ext.__file__).parent
REPORTED_ONLY = {"pipeline/runner.py"}
OF_THE_WALL = {("time", "time"), ("time", "time_ns"), ("datetime", "now"), ("datetime", "utcnow"), ("date", "today")}


def wall_clock_calls(path: Path) -> list[int]:
    calls = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    named = [call for call in calls if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name)]
    return [call.lineno for call in named if (call.func.value.id, call.func.attr) in OF_THE_WALL]


@pytest.mark.slow
def test_only_the_pipelines_account_reads_the_wall_clock() -> None:
    users = {path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.py") if wall_clock_calls(path)}
    assert users == REPORTED_ONLY


def test_a_clock_set_back_takes_nothing_from_earlier_attempts() -> None:
    entry = Entry("running", "", {}, cost={"wall_seconds": 30.0, "open_since": time.time() + 3600})
    _close_attempt(entry)
    assert entry.cost == {"wall_seconds": 30.0}


def test_nor_from_an_attempt_whose_log_is_older_than_its_start(tmp_path) -> None:
    log = tmp_path / "log.txt"
    log.touch()
    started = log.stat().st_mtime
    assert _unwritten_seconds(Entry("running", "", {}, cost={"open_since": started - 5.0}), log) == pytest.approx(5.0)
    assert _unwritten_seconds(Entry("running", "", {}, cost={"open_since": started + 3600}), log) == 0.0
