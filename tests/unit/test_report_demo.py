"""The demo's follower, summary and page, with a script in the trainer's place that writes what a run writes."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import select
import sys

import pytest

from s2l_ext.cli import demo as demo_module
from s2l_ext.cli.demo import add_arguments, main, run_demo
from s2l_ext.errors import DataError
from s2l_ext.report.charts import Line, chart, nice_step
from s2l_ext.studies.demo import Demo, StartUp, train_command
from s2l_ext.utils import processes
from s2l_ext.utils.follow import Tail, last_lines
from s2l_ext.utils.progress import Phase, Progress

FAKE_TRAINER = """
import json, os, pathlib, sys, time
args = dict(a.split("=", 1) for a in sys.argv[1:] if "=" in a)
run = pathlib.Path(args["trainer.default_local_dir"].strip("'"))
val = pathlib.Path(args["trainer.validation_data_dir"].strip("'"))
run.mkdir(parents=True), val.mkdir(parents=True)
steps, group, n = 4, 8, 40
block = bytearray(80_000_000)
(run / "s2l_config.yaml").write_text(
    f"trainer: {{validation_data_dir: {json.dumps(str(val))}}}\\n")
slots = [8, 4, 0, 0]
(run / "plan.json").write_text(json.dumps({"steps": steps, "group_size": group, "explorer": {"slots": slots}}))
print("toy at", os.environ["S2L_TOY_DIR"], flush=True)
if os.environ.get("FAKE_FAIL"):
    print("\\n".join(f"log line {i}" for i in range(100)))
    raise SystemExit("RuntimeError: no more memory")
def log(step, data):
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"step": step, "data": data}) + "\\n")
def validate(step, solved):
    rows = [{"input": f"{i}+1=?", "output": f"<out> {i}", "gts": "1", "score": 0.0, "acc": float(i < solved)}
            for i in range(n)]
    (val / f"{step}.jsonl").write_text("".join(json.dumps(row) + "\\n" for row in rows))
    log(step, {"val-core/toy_chain/acc/mean@1": solved / n})
validate(0, int(os.environ.get("FAKE_BEFORE", "10")))
for step, slots in enumerate(slots, start=1):
    time.sleep(float(os.environ.get("FAKE_SECONDS", "0")))
    data = {"training/global_step": step, "s2l/explorer/rollouts_per_group": slots}
    data["s2l/explorer/fraction"] = slots / group
    for source, rows in (("explorer", slots), ("learner", group - slots)):
        data[f"s2l/source/{source}/rows"] = rows
        if rows:
            data[f"s2l/source/{source}/reward_mean"] = 0.2 * step
            data[f"s2l/source/{source}/response_length_mean"] = 20.0 + step
    log(step, data)
validate(4, 30)
"""


@pytest.fixture
def fake(tmp_path, monkeypatch) -> Demo:
    monkeypatch.setattr(processes, "MEMORY_SECONDS", 0.2)
    monkeypatch.setattr(processes, "POLL_SECONDS", 0.1)
    script = tmp_path / "fake_trainer.py"
    script.write_text(FAKE_TRAINER)
    prepare = "import pathlib, sys; pathlib.Path(sys.argv[1]).mkdir(exist_ok=True); print('made')"
    return Demo(
        tmp_path / "a demo",
        prepare_command=(sys.executable, "-c", prepare),
        train_command=(sys.executable, str(script)),
    )


@pytest.mark.slow
def test_summary_report_and_closing_lines(fake, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_SECONDS", "0.2")  # for a sample of the memory
    assert run_demo(fake) == 0
    summary = json.loads((fake.out / "summary.json").read_text())
    assert (summary["recipe"], summary["steps"], summary["n_val"]) == ("s2l_po/toy", 4, 40)
    assert summary["explorer_slots"] == summary["explorer_slots_schedule"] == [8, 4, 0, 0]
    assert (summary["val_accuracy_before"], summary["val_accuracy_after"]) == (0.25, 0.75)
    assert summary["gain"] == pytest.approx(0.5)
    low, high = summary["ci95"]
    assert 0.3 < low < 0.5 < high < 0.7
    assert set(summary["phase_seconds"]) == {"toy", "start-up", "steps"}
    assert summary["wall_seconds"] == pytest.approx(sum(summary["phase_seconds"].values()), abs=0.2)
    assert 0.08 <= summary["peak_memory_gb"] < 0.3
    assert {"python", "torch", "verl", "vllm", "ray", "transformers", "s2l_ext"} == set(summary["versions"])
    last = capsys.readouterr().out.strip().splitlines()[-3:]
    assert last[0].startswith("Learned: Held-out accuracy 0.250 → 0.750 in 4 steps. Gain +0.500")
    assert str(fake.out / "report.html") in last[1]
    assert last[2].startswith("Next:")


@pytest.mark.slow
def test_page_is_one_balanced_file_the_page_of_the_run(fake, read_page):
    run_demo(fake)
    text = (fake.out / "report.html").read_text(encoding="utf-8")
    page = read_page(text)
    assert page.drawings == 4
    assert page.links[:2] == ["#results", "#held_out_accuracy"] and page.links[-4:-2] == ["#demo", "#cost"]
    assert "http" not in text
    assert "<h1>Held-out accuracy 0.250 → 0.750 in 4 steps</h1>" in text and "8 4 0 0, as scheduled" in text
    assert "<polygon class='band learner'" in text
    assert "prefers-color-scheme: dark" in text
    assert "&lt;out&gt; 10" in text and "<out>" not in text
    assert len(re.findall("class='dot explorer'", text)) == 4 + 2 + 2


@pytest.mark.slow
def test_no_clear_gain_is_said_plainly_and_is_no_failure(fake, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_BEFORE", "30")
    assert run_demo(fake) == 0
    assert "does not show that the model got better" in capsys.readouterr().out


@pytest.mark.slow
def test_second_demo_replaces_the_first(fake):
    assert run_demo(fake) == 0
    stale = fake.run / "global_step_99"
    stale.mkdir()
    assert run_demo(fake) == 0
    assert not stale.exists()
    assert len((fake.run / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("name", ["run/precious.txt", "summary.json", "report.html", "toy.log", "train.log"])
def test_what_no_demo_made_is_not_removed(fake, name):
    precious = fake.out / name
    precious.parent.mkdir(parents=True)
    precious.write_text("mine")
    with pytest.raises(DataError, match="not made by a demo"):
        run_demo(fake)
    assert precious.read_text() == "mine"


@pytest.mark.parametrize("below", ["", "demo"])
def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, below):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"file.*: cannot be written \(.*\)\. Choose another --out"):
        run_demo(Demo(tmp_path / "file" / below))
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.slow
def test_failure_shows_the_end_of_the_log_and_its_path(fake, capsys, monkeypatch):
    monkeypatch.setenv("FAKE_FAIL", "1")
    assert run_demo(fake) == 1
    error = capsys.readouterr().err
    assert "log line 99" in error and "no more memory" in error
    assert "log line 70\n" not in error
    assert f"exit code 1. The whole log: {fake.out / 'train.log'}" in error
    assert not (fake.out / "summary.json").exists()


def test_failing_preparation_does_not_train(tmp_path, capsys):
    demo = Demo(tmp_path / "demo", prepare_command=(sys.executable, "-c", "raise SystemExit('disk full')"))
    assert run_demo(demo) == 1
    assert "disk full" in capsys.readouterr().err
    assert not demo.run.exists()


def test_command_line_reaches_the_training_command(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(demo_module, "run_demo", lambda demo, as_json: seen.append((demo, as_json)) or 0)
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    words = ["--out", str(tmp_path / "a'b"), "--steps", "3", "--json", "data.seed=2"]
    assert main(parser.parse_intermixed_args(words)) == 0
    (demo, as_json), command = seen[0], train_command(seen[0][0])
    assert as_json and demo.recipe == "s2l_po/toy"
    assert command[-2:] == ["trainer.total_training_steps=3", "data.seed=2"]
    assert f"trainer.default_local_dir='{tmp_path}/a\\'b/run'" in command
    with pytest.raises(DataError, match="--steps 0"):
        main(parser.parse_args(["--steps", "0"]))


def test_tail_gives_complete_lines_once(tmp_path):
    tail = Tail(tmp_path / "m.jsonl")
    assert tail.new_lines() == []
    (tmp_path / "m.jsonl").write_text('{"a": 1}\n{"a": ')
    assert tail.new_records() == [{"a": 1}]
    with open(tmp_path / "m.jsonl", "a") as file:
        file.write('2}\nnot json\n{"a": 3}\n')
    assert tail.new_records() == [{"a": 2}, {"a": 3}]
    assert tail.new_lines() == []


def test_last_lines_sees_through_carriage_returns(tmp_path):
    (tmp_path / "log").write_text("one\n\n 10%|#\r 20%|##\r")
    assert last_lines(tmp_path / "log", 2) == [" 10%|#", " 20%|##"]
    assert last_lines(tmp_path / "none", 2) == []


def test_progress_never_goes_back_and_times_its_phases():
    stream = io.StringIO()
    progress = Progress([Phase("a", 0.4, 10.0), Phase("b", 0.6, 10.0)], stream)
    positions = []
    progress.start("a")
    for fraction in (0.5, 0.2, None):
        progress.update(fraction, "working")
        positions.append(progress._position)
    progress.start("b", "second")
    positions.append(progress._position)
    progress.close("done")
    assert positions == sorted(positions) and positions[0] == pytest.approx(0.2) and positions[-1] == pytest.approx(0.4)
    assert set(progress.seconds) == {"a", "b"}
    lines = stream.getvalue().splitlines()
    assert lines[-1].startswith("100% 00:0") and lines[-1].endswith("done")


def test_a_live_bar_stays_on_one_line_of_a_terminal_without_a_size():
    master, slave = os.openpty()
    with os.fdopen(slave, "w") as stream:
        progress = Progress([Phase("a", 1.0, 10.0)], stream)
        progress.start("a", "start")
        progress.update(0.5, "half way")
        progress.close("done")
        drawn = ""
        while "\n" not in drawn and select.select([master], [], [], 5)[0]:
            drawn += os.read(master, 100_000).decode()
    os.close(master)
    assert " 50% |" in drawn and "half way" in drawn
    assert drawn.count("\n") == 1 and drawn.rstrip().endswith("done")


def test_chart_without_points_says_so():
    assert "logged no values" in chart("Reward", "reward", [Line("learner", "learner", [])])


@pytest.mark.parametrize(("span", "step"), [(1.0, 0.2), (16, 5), (0.04, 0.01), (70, 20), (0, 1.0)])
def test_nice_step(span, step):
    assert nice_step(span) == pytest.approx(step)


def test_progress_says_what_start_up_waits_for(tmp_path):
    start_up = StartUp(log := tmp_path / "train.log")
    assert start_up.text() == "start-up 1/7: checking the configuration and the machine"
    log.write_text("Started a local Ray instance.\n\x1b[36m(TaskRunnerV1 pid=12)\x1b[0m a\nhalf (vLLMHttpServer pid=")
    assert start_up.text() == "start-up 4/7: the trainer runs, waiting for the learner's process"
    with open(log, "a") as file:
        file.write("1)\n(TaskRunnerV1 pid=12) again\n")
    assert "vLLM loads" in start_up.text() and "vLLM loads" in start_up.text()
