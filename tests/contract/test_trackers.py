"""verl's trackers keep this package's metrics, without a network: each reads back what arrived.

wandb and tensorboard are of the lock. The others are skipped unless installed: pip install mlflow swanlab trackio
"""

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from verl.utils.tracking import Tracking

from s2l_ext.training.rules import TRACKERS

pytestmark = pytest.mark.contract

NAMES = ("s2l/explorer/rollouts_per_group", "val-core/aime24/acc/mean@16")
VALUES = {1: (4.0, 0.25), 2: (0.0, 0.5)}
CONFIG = {"trainer": {"nnodes": 1}, "s2l": {"explorer": None}}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Log two steps to a tracker, everything of its below the test's folder."""
    for key, value in {
        "WANDB_MODE": "offline",
        "WANDB_DIR": str(tmp_path),
        "TENSORBOARD_DIR": str(tmp_path / "tensorboard"),
        "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics.jsonl"),
        "MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db",
        "SWANLAB_MODE": "offline",
        "SWANLAB_LOG_DIR": str(tmp_path / "swanlog"),
        "TRACKIO_DIR": str(tmp_path / "trackio"),
        "HF_HUB_OFFLINE": "1",
    }.items():
        monkeypatch.setenv(key, value)
    monkeypatch.chdir(tmp_path)

    def run(backend: str) -> Path:
        tracking = Tracking("s2l", "run", [backend], CONFIG)
        assert backend in tracking.logger
        for step, values in VALUES.items():
            tracking.log(dict(zip(NAMES, values, strict=True)), step)
        tracking.finish()
        return tmp_path

    return run


def test_the_trackers_that_the_rules_know_are_verls() -> None:
    assert set(TRACKERS) - {"tracking"} == set(Tracking.supported_backend)


def test_tensorboard(log) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(log("tensorboard") / "tensorboard")).Reload()
    for position, name in enumerate(NAMES):
        found = {point.step: point.value for point in events.Scalars(name)}
        assert found == {step: values[position] for step, values in VALUES.items()}


def test_wandb(log) -> None:
    import wandb

    (offline,) = log("wandb").glob("wandb/offline-run-*/run-*.wandb")
    wandb.teardown()  # or its process is looked for again when Python ends, after pytest's last line
    assert all(name.encode() in offline.read_bytes() for name in NAMES)


def test_file(log) -> None:
    lines = [json.loads(line) for line in (log("file") / "metrics.jsonl").read_text().splitlines()]
    assert {line["step"]: tuple(line["data"][name] for name in NAMES) for line in lines} == VALUES


def test_mlflow_has_its_own_spelling_of_names(log) -> None:
    """``@`` becomes ``_at_``; mlflow 3 refuses a store of files, its old default, and verl goes on without."""
    mlflow = pytest.importorskip("mlflow", reason="pip install mlflow")
    pytest.importorskip("sqlalchemy", reason="pip install mlflow, not mlflow-skinny: a store of files is refused")
    log("mlflow")
    client = mlflow.MlflowClient()
    (run,) = client.search_runs([client.get_experiment_by_name("s2l").experiment_id])
    assert run.info.run_name == "run" and run.data.params["trainer/nnodes"] == "1"
    for position, name in enumerate(NAMES):
        history = client.get_metric_history(run.info.run_id, name.replace("@", "_at_"))
        assert {point.step: point.value for point in history} == {s: v[position] for s, v in VALUES.items()}


def test_swanlab(log) -> None:
    pytest.importorskip("swanlab", reason="pip install swanlab")
    (kept,) = log("swanlab").glob("swanlog/run-*/run-*.swanlab")
    assert all(name.encode() in kept.read_bytes() for name in NAMES)


def test_trackio(log) -> None:
    pytest.importorskip("trackio", reason="pip install trackio")
    with sqlite3.connect(log("trackio") / "trackio" / "s2l.db") as database:
        rows = database.execute("select step, metrics from metrics").fetchall()
    assert {step: tuple(json.loads(text)[name] for name in NAMES) for step, text in rows} == VALUES
