"""`s2l demo`, shortened: the numbers that its summary promises come out of a real run."""

import json
import subprocess
import sys

import pytest

from s2l_ext.studies.demo import STAGES

STEPS = 8


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "s2l_ext.cli", "demo", "--out", str(out), "--steps", str(STEPS)]
    command += ["s2l.explorer.mix_steps=4", f"trainer.test_freq={STEPS // 2}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return json.loads((out / "summary.json").read_text()), out, done.stdout


def test_applied_slots_equal_the_schedule(demo) -> None:
    summary, _, _ = demo
    assert summary["explorer_slots"] == summary["explorer_slots_schedule"] == [8, 6, 3, 0, 0, 0, 0, 0]


def test_learner_gained_at_least_a_tenth_on_held_out_problems(demo) -> None:
    summary, _, _ = demo
    assert summary["gain"] >= 0.10
    assert summary["ci95"][0] > 0
    assert summary["gain"] == pytest.approx(summary["val_accuracy_after"] - summary["val_accuracy_before"])
    assert summary["n_val"] == 256


def test_summary_and_report_are_whole(demo) -> None:
    summary, out, printed = demo
    promised = "recipe steps explorer_slots val_accuracy_before val_accuracy_after n_val ci95 wall_seconds"
    assert {*promised.split(), "peak_memory_gb", "versions"} <= summary.keys()
    assert summary["steps"] == STEPS and 2 < summary["peak_memory_gb"] < 24
    page = (out / "report.html").read_text()
    assert "<svg" in page and "http" not in page.replace("http://www.w3.org", "")
    assert [line.split(":")[0] for line in printed.strip().splitlines()[-3:]] == ["Learned", "Files", "Next"]


def test_stages_of_start_up_are_in_the_log_in_their_order(demo) -> None:
    _, out, _ = demo
    log = (out / "train.log").read_text(errors="replace")
    places = [log.find(mark) for mark, _ in STAGES]
    assert -1 not in places and places == sorted(places)
