"""Pipelines of stand-in stages in processes of their own: skipping, resuming after kill -9, staleness, damage, disk."""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from s2l_ext import cli
from s2l_ext.errors import ResourceError
from s2l_ext.pipeline import runner
from s2l_ext.pipeline.file import KINDS
from s2l_ext.pipeline.runner import locked

pytestmark = pytest.mark.slow

STAND_IN = Path(__file__).with_name("pipeline_stand_in.py")
MODELS = ["student", "teacher_rl", "student_rl"]


@pytest.fixture(scope="module")
def stand_in():
    spec = importlib.util.spec_from_file_location("pipeline_stand_in", STAND_IN)
    module = importlib.util.module_from_spec(spec)
    sys.modules["pipeline_stand_in"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def world(tmp_path, monkeypatch, stand_in):
    """A folder with two models, two halves of data and the stand-in kinds; ``s2l`` runs the command in this process."""
    for name, kind in stand_in.fake_kinds().items():
        monkeypatch.setitem(KINDS, name, kind)
    monkeypatch.chdir(tmp_path)
    for name in ("teacher", "student"):
        stand_in.write_model(tmp_path / name, name)
    for name, numbers in (("1H", range(4)), ("2H", range(4, 8)), ("test", range(8, 10))):
        prompts = [[{"role": "user", "content": str(number)}] for number in numbers]
        table = {"prompt": prompts, "reward_model": [{"ground_truth": "1"} for _ in prompts]}
        pq.write_table(pa.table(table), tmp_path / f"{name}.parquet")
    return tmp_path


def stages(**changes) -> list[dict]:
    """Teacher RL on 1H, distillation of the student on 1H without labels, student RL on 2H."""
    listed = [
        {"name": "teacher_rl", "kind": "train", "recipe": "a", "inputs": {"model": "teacher", "data": "half1"}},
        {
            "name": "opd",
            "kind": "train",
            "recipe": "b",
            "inputs": {"model": "student", "teacher": "teacher_rl", "data": "half1"},
        },
        {"name": "student_rl", "kind": "train", "recipe": "a", "inputs": {"model": "opd", "data": "half2"}},
    ]
    return [{**stage, **changes.get(stage["name"], {})} for stage in listed]


def write(world: Path, listed: list[dict] | None = None, **changes) -> Path:
    splits = {"half1": "1H.parquet", "half2": "2H.parquet", "test": "test.parquet"}
    models = {"teacher": "./teacher", "student": "./student"}
    content = {"name": "p", "output_dir": "out", "models": models, "splits": splits, "stages": listed or stages()}
    (world / "p.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return world / "p.yaml"


def s2l(*words: str) -> int:
    return cli.main(["pipeline", "p.yaml", *words])


def manifest(out: Path) -> dict:
    return json.loads((out / "manifest.json").read_text())["stages"]


def results(out: Path) -> dict:
    return {name: entry["result"] for name, entry in manifest(out).items()}


def states(capsys) -> dict[str, str]:
    capsys.readouterr()
    assert s2l("--status", "--json") == 0
    return {row["stage"]: f"{row['state']}: {row['why']}" for row in json.loads(capsys.readouterr().out)["stages"]}


# ---- a whole pipeline ------------------------------------------------------------------------------------------------


def test_a_pipeline_runs_hands_on_accounts_and_is_then_skipped(world, capsys) -> None:
    table = {"name": "table", "kind": "evaluate", "inputs": {"models": MODELS, "data": "test"}}
    write(world, [*stages(), table])
    assert s2l("--dry-run") == 0 and not (world / "out").exists()
    assert s2l() == 0
    shown = capsys.readouterr().out
    assert "[1/4] teacher_rl: runs (never run)" in shown and "teacher_rl: step 3/3" in shown
    entry = manifest(world / "out")["opd"]
    assert entry["result"]["labels"]["used"] is False and entry["result"]["labels"]["prompts"] == 4
    assert (entry["result"]["steps"], entry["result"]["tokens"], entry["result"]["accuracy"]) == (3, 600, 0.3)
    assert entry["result"]["flops"] == {
        "training": 6.0 * 4 * 600,
        "sampling": 2.0 * 4 * 600,
        "scoring": 2.0 * 4 * 600,
        "total": 10.0 * 4 * 600,
    }
    assert entry["cost"]["attempts"] == 1 and entry["cost"]["wall_seconds"] > 0
    assert entry["cost"]["accelerators"] == 2 and entry["cost"]["accelerator_seconds"] > 0
    given = entry["result"]["inputs"]["teacher"][0]
    assert given["path"] == "<out>/models/teacher_rl"
    assert given["sha256"] == manifest(world / "out")["teacher_rl"]["result"]["output"]["sha256"]
    cost = manifest(world / "out")["table"]["cost"]
    assert (cost["accelerators"], cost["accelerator_seconds"]) == (1, cost["wall_seconds"])
    rows = json.loads((world / "out" / "table.json").read_text())
    assert [row["stage"] for row in rows] == ["student", "teacher_rl", "opd", "student_rl"]
    assert rows[3]["accuracy"]["table"]["standard_error"] == 0.01 and rows[2]["accuracy"] == {}
    assert "± 0.010" in (world / "out" / "table.md").read_text() and "0.300 (validation)" in shown
    before = (world / "out" / "manifest.json").read_text()
    assert s2l() == 0 and capsys.readouterr().out.count("skipped (finished, nothing changed)") == 4
    assert (world / "out" / "manifest.json").read_text() == before


@pytest.mark.slow
def test_every_model_has_a_card_of_its_base(world) -> None:
    (world / "student" / "README.md").write_text("---\nlicense: apache-2.0\nbase_model: me/student\n---\n")
    write(world)
    assert s2l() == 0
    cards = {path.parent.name: path for path in (world / "out" / "models").glob("*/README.md")}
    assert cards.keys() == {"teacher_rl", "opd", "student_rl"}
    data = huggingface_hub.metadata_load(cards["student_rl"])
    assert (data["base_model"], data["license"]) == ("me/student", "apache-2.0")  # of the stage that came before
    assert "See manifest.json." in cards["opd"].read_text()
    assert not [name for name, card in cards.items() if str(world) in card.read_text()]


@pytest.mark.slow
def test_an_edited_stage_and_what_follows_are_made_again_and_nothing_is_deleted(world, capsys) -> None:
    write(world)
    assert s2l() == 0
    write(world, stages(opd={"options": {"steps": 2}}))
    assert states(capsys) == {
        "teacher_rl": "done: finished, nothing changed",
        "opd": "stale: changed: recipe, stage",
        "student_rl": "stale: made again after opd",
    }
    old = results(world / "out")["opd"]["output"]["sha256"]
    assert s2l() == 0
    assert [entry["cost"]["attempts"] for entry in manifest(world / "out").values()] == [1, 1, 1]
    aside = world / "out" / "stages" / "opd.stale-1" / "manifest_entry.json"
    assert json.loads(aside.read_text())["result"]["output"]["sha256"] == old
    assert (world / "out" / "models" / "opd.stale-1" / "model.safetensors").exists()
    write(world)
    assert s2l("--from", "student_rl") == 0  # opd changed back: it is made again because it changed
    assert results(world / "out")["opd"]["output"]["sha256"] == old
    assert (world / "out" / "stages" / "student_rl.stale-2").is_dir()


def test_the_table_has_no_result_of_a_stage_that_would_run_again(world, capsys) -> None:
    table = {"name": "table", "kind": "evaluate", "inputs": {"models": MODELS, "data": "test"}}
    write(world, [*stages(), table])
    assert s2l() == 0
    capsys.readouterr()
    changed = [
        *stages(
            opd={"name": "bridge", "options": {"steps": 2}}, student_rl={"inputs": {"model": "bridge", "data": "half2"}}
        ),
        table,
    ]
    write(world, changed)
    assert s2l("--only", "bridge") == 0
    assert "student_rl" not in capsys.readouterr().out
    rows = json.loads((world / "out" / "table.json").read_text())
    assert [(row["stage"], row["accuracy"]) for row in rows] == [("teacher_rl", {}), ("bridge", {})]
    assert cli.main(["report", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"] == ["teacher_rl", "bridge", "student_rl"]


def test_a_run_that_fails_leaves_no_earlier_result_of_its_stages_in_the_table(world) -> None:
    write(world)
    assert s2l() == 0
    write(world, stages(opd={"options": {"fail": True}}))
    assert s2l() == 1
    assert [row["stage"] for row in json.loads((world / "out" / "table.json").read_text())] == ["teacher_rl"]


@pytest.mark.slow
def test_from_makes_a_stage_again_and_only_needs_finished_inputs(world, capsys) -> None:
    write(world)
    assert s2l("--only", "opd") == 2
    assert "--only opd: waits for teacher_rl. Run the pipeline without --only first." in capsys.readouterr().err
    assert s2l("--only", "teacher_rl") == 0 and list(manifest(world / "out")) == ["teacher_rl"]
    assert s2l() == 0
    first = results(world / "out")
    assert s2l("--dry-run", "--from", "opd") == 0
    shown = capsys.readouterr().out
    assert "teacher_rl (train): done" in shown and "opd (train): stale: asked for with --from" in shown
    assert s2l("--from", "opd") == 0
    assert results(world / "out") == first and (world / "out" / "stages" / "opd.stale-1").is_dir()
    assert not (world / "out" / "stages" / "teacher_rl.stale-1").exists()
    assert s2l("--from", "odp") == 2 and "Did you mean 'opd'?" in capsys.readouterr().err


def test_another_version_of_the_package_or_of_the_data_makes_a_stage_stale(world, capsys, monkeypatch) -> None:
    write(world)
    assert s2l("--only", "teacher_rl") == 0
    monkeypatch.setattr("s2l_ext.pipeline.plan.__version__", "99")
    assert states(capsys)["teacher_rl"] == "stale: changed: s2l_ext"
    pq.write_table(pq.read_table(world / "1H.parquet").slice(1), world / "1H.parquet")
    assert states(capsys)["teacher_rl"] == "stale: changed: input data, s2l_ext"


def test_stages_are_made_ready_again_when_what_they_take_is_finished(world, monkeypatch) -> None:
    renewed = []
    monkeypatch.setattr("s2l_ext.pipeline.plan.Plan.renew", lambda plan, stage: renewed.append(stage.name))
    write(world)
    assert s2l() == 0 and renewed == ["teacher_rl", "opd", "student_rl"]
    assert s2l() == 0 and len(renewed) == 3


# ---- failures ------------------------------------------------------------------------------------------------------


def test_a_failed_stage_shows_its_log_and_is_resumed(world, capsys) -> None:
    write(world, stages(opd={"options": {"fail": True}}))
    assert s2l() == 1
    error = capsys.readouterr().err
    assert "line 39" in error and "out of luck" in error and "line 5\n" not in error
    assert f"stage opd failed with exit code 1. The whole log: {world}/out/stages/opd/log.txt" in error
    assert states(capsys)["opd"] == "interrupted: failed, no checkpoint yet"
    write(world)
    assert s2l() == 0 and (world / "out" / "stages" / "opd.stale-1").is_dir()


def test_damaged_and_missing_outputs_are_named_before_anything_runs(world, capsys) -> None:
    write(world)
    assert s2l() == 0
    weights = world / "out" / "models" / "teacher_rl" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"?")
    assert s2l() == 2
    error = capsys.readouterr().err
    expected = results(world / "out")["teacher_rl"]["output"]["files"]["model.safetensors"]
    assert f"{weights} is damaged: expected sha256 {expected[:16]}, found " in error and "--from teacher_rl" in error
    weights.unlink()
    assert s2l() == 2 and f"{weights} is missing" in capsys.readouterr().err
    weights.write_bytes(content)
    assert s2l() == 0


@pytest.mark.parametrize(
    ("break_it", "words"),
    [
        (lambda world: (world / "1H.parquet").unlink(), "stage teacher_rl: inputs.data: 1H.parquet does not exist"),
        (lambda world: (world / "teacher" / "model.safetensors").unlink(), "weights (*.safetensors) missing"),
        (lambda world: (world / "1H.parquet").write_text("no"), "1H.parquet: not a readable parquet file"),
        (
            lambda world: pq.write_table(pa.table({"prompt": ["a", "b"]}), world / "1H.parquet"),
            "stage teacher_rl: 1H.parquet: 2 of 2 rows have no reward_model.ground_truth",
        ),
        (
            lambda world: write(world, stages(student_rl={"inputs": {"model": "opd", "data": "half1"}})),
            "stages teacher_rl and student_rl both learn from the labels of 4 prompts",
        ),
    ],
)
def test_refused_before_anything_runs(world, capsys, break_it, words) -> None:
    write(world)
    break_it(world)
    assert s2l() == 2
    assert words in capsys.readouterr().err and not (world / "out" / "stages").exists()


def test_overlapping_labels_may_be_allowed(world) -> None:
    listed = stages(student_rl={"inputs": {"model": "opd", "data": "half1"}, "options": {"steps": 1}})
    write(world, listed, allow_label_overlap=True)
    assert s2l() == 0


def test_a_part_that_a_stage_did_not_make(world, capsys) -> None:
    inputs = {"model": "teacher_rl/nothing", "teacher": "teacher_rl", "data": "half1"}
    write(world, stages(opd={"inputs": inputs}))
    assert s2l() == 2 and "stage opd: inputs.model: " in capsys.readouterr().err
    assert manifest(world / "out")["teacher_rl"]["status"] == "done"


def test_a_call_with_from_goes_on_without_it(world, capsys, monkeypatch) -> None:
    write(world, stages(teacher_rl={"options": {"fail": True}}))
    assert s2l("--from", "teacher_rl") == 1
    assert "Run it again without --from: it continues from the stage's last checkpoint." in capsys.readouterr().err
    assert s2l() == 1 and "\nThe same command continues from" in capsys.readouterr().err

    def stop(self, only) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("s2l_ext.cli.pipeline.Runner.run", stop)
    assert s2l("--from", "opd") == 130
    assert "stopped. Run it again without --from: it continues from here." in capsys.readouterr().err
    assert s2l() == 130 and "stopped. The same command continues from here." in capsys.readouterr().err


def test_from_one_stage_and_only_another_is_refused_before_anything_is_set_aside(world, capsys) -> None:
    write(world)
    assert s2l("--only", "teacher_rl") == 0
    before = (world / "out" / "manifest.json").read_text()
    assert s2l("--from", "teacher_rl", "--only", "opd") == 2
    assert "--from teacher_rl --only opd: --from would set aside" in capsys.readouterr().err
    assert (world / "out" / "manifest.json").read_text() == before


# ---- disk full -----------------------------------------------------------------------------------------------------


def test_a_full_disk_at_the_export_costs_no_training(world, capsys, monkeypatch) -> None:
    write(world)

    def full(source: Path, copy: Path) -> None:
        copy.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device", str(copy))

    with monkeypatch.context() as patch:
        patch.setattr(runner, "copy_file", full)
        assert s2l() == 2
    error = capsys.readouterr().err
    assert f"{world}/out/models/teacher_rl: No space left on device (" in error and "GB free" in error
    assert list((world / "out" / "models").iterdir()) == []
    assert states(capsys)["teacher_rl"].startswith("to export")
    metrics = world / "out" / "stages" / "teacher_rl" / "run" / "metrics.jsonl"
    trained = metrics.stat().st_mtime_ns
    assert s2l("--only", "teacher_rl") == 0
    assert metrics.stat().st_mtime_ns == trained and manifest(world / "out")["teacher_rl"]["status"] == "done"


# ---- kill -9 -------------------------------------------------------------------------------------------------------

FROM_NOTHING = {
    "name": "p",
    "output_dir": "out",
    "models": {"teacher": "stage:toy/models/large", "student": "stage:toy/models/medium"},
    "splits": {"half1": "stage:split/1H.parquet", "half2": "stage:split/2H.parquet"},
    "stages": [
        {"name": "toy", "kind": "toy"},
        {"name": "split", "kind": "split", "inputs": {"data": "toy/train.parquet"}},
        *stages(),
        {"name": "table", "kind": "evaluate", "inputs": {"models": MODELS, "data": "toy/test.parquet"}},
    ],
}
KILLS = {
    "toy:1": "stages/toy/run/paused",
    "teacher_rl:1": "stages/teacher_rl/run/paused",
    "export:teacher_rl": "paused",
    "opd:2": "stages/opd/run/paused",
    "student_rl:3": "stages/student_rl/run/paused",
    "table:2": "stages/table/run/paused",
}


def start(out: str, pause: str = "") -> subprocess.Popen:
    command = [sys.executable, str(STAND_IN), "pipeline", "p.yaml", "--out", out]
    with open("shown.txt", "ab") as shown:
        return subprocess.Popen(
            command, env={**os.environ, "STAND_IN_PAUSE": pause}, stdout=shown, stderr=subprocess.STDOUT
        )


def kill_when(process: subprocess.Popen, mark: Path) -> list[int]:
    """Kill -9 once the mark is there; the pids in it, which must be gone soon after."""
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text()):
        assert process.poll() is None and time.monotonic() < deadline, Path("shown.txt").read_text()
        time.sleep(0.02)
    pids = [int(pid) for pid in mark.read_text().split()]
    process.kill()
    process.wait()
    return pids


def gone(pids: list[int]) -> bool:
    """Ended; a zombie has ended too."""
    alive = []
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            alive += [pid] if psutil.Process(pid).status() != psutil.STATUS_ZOMBIE else []
    return not alive


@pytest.mark.slow
def test_killed_in_every_stage_and_resumed_it_ends_as_one_that_was_not(world) -> None:
    (world / "p.yaml").write_text(yaml.safe_dump(FROM_NOTHING))
    for pause, mark in KILLS.items():
        pids = kill_when(start("killed", pause), world / "killed" / mark)
        deadline = time.monotonic() + 20
        while not gone(pids):
            assert time.monotonic() < deadline, f"{pause}: processes {pids} outlive the pipeline"
            time.sleep(0.05)
        (world / "killed" / mark).unlink()  # what a real stage does not write
    assert start("killed").wait() == 0, Path("shown.txt").read_text()
    assert start("whole").wait() == 0
    assert results(world / "killed") == results(world / "whole")
    attempts = {name: entry["cost"]["attempts"] for name, entry in manifest(world / "killed").items()}
    assert attempts == {"toy": 2, "split": 1, "teacher_rl": 3, "opd": 2, "student_rl": 2, "table": 2}
    kept = [path.name for path in (world / "killed" / "models").iterdir()]
    assert sorted(kept) == ["opd", "student_rl", "teacher_rl"], "no half-written model is left"
    assert "opd: resumes (interrupted at step 2 of 3)" in Path("shown.txt").read_text()


# ---- one pipeline per folder ---------------------------------------------------------------------------------------


def test_a_second_pipeline_is_refused_with_process_and_host(world, capsys) -> None:
    write(world)
    with locked(world / "out"):
        command = [sys.executable, str(STAND_IN), "pipeline", "p.yaml"]
        second = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert states(capsys)["teacher_rl"].startswith("to run")
    assert second.returncode == 2
    assert f"another pipeline works here: process {os.getpid()} on host {socket.gethostname()}" in second.stderr


def test_a_stale_lock_is_taken_over_and_one_of_another_host_is_not(tmp_path) -> None:
    lock = tmp_path / ".lock"
    lock.write_text(json.dumps({"pid": 2**22 + 1, "host": socket.gethostname(), "token": "t"}))
    with locked(tmp_path):
        assert json.loads(lock.read_text())["pid"] == os.getpid()
    assert lock.read_text() == ""
    lock.write_text(json.dumps({"pid": 7, "host": "elsewhere", "token": "t"}))
    with pytest.raises(ResourceError, match=r"process 7 on host elsewhere.*remove .*\.lock"), locked(tmp_path):
        pass
