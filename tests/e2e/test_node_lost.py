"""The explorer's node is lost in a run on a real cluster of two nodes, and another one joins."""

import json
import threading
from pathlib import Path

import pytest

from s2l_ext.methods.explorer.schedule import LinearAnnealing

pytestmark = pytest.mark.long

GROUP, PROMPTS, MIX_STEPS, TOTAL = 4, 4, 12, 10
SLOTS = {step: LinearAnnealing(MIX_STEPS, GROUP).slots(step) for step in range(1, TOTAL + 1)}
WORDS = (
    "s2l.placement.learner={pool: learner}",
    "s2l.placement.explorer={pool: explorer}",
    "++transfer_queue.backend.SimpleStorage.required_node_resource=node:__internal_head__",
    f"s2l.explorer.mix_steps={MIX_STEPS}",
    "s2l.explorer.on_failure=wait",
    "s2l.explorer.restart_backoff_s=1",
    "s2l.explorer.start_timeout_s=300",
    "s2l.explorer.health_interval_s=2",
    "s2l.explorer.health_timeout_s=20",
    f"trainer.total_training_steps={TOTAL}",
    "trainer.save_freq=-1",
)


def steps_of(folder: Path) -> dict[int, dict]:
    path = folder / "metrics.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")] if path.exists() else []
    return {line["step"]: line["data"] for line in lines if "training/global_step" in line["data"]}


@pytest.fixture(scope="module")
def run(clusters, toy_dir, small_run, tmp_path_factory):
    folder, done = tmp_path_factory.mktemp("job"), []
    with clusters.local_cluster(S2L_TOY_DIR=str(toy_dir)) as cluster:
        cluster.add("head", {"pool": "learner"})
        cluster.add("second", {"pool": "explorer"})
        words = ["train", "--config-name", "s2l_po/toy", *small_run, *clusters.JOINING, *WORDS]
        words += [f"trainer.default_local_dir={folder}"]
        job = threading.Thread(
            target=lambda: done.append(cluster.submit("--follow", "--env", "S2L_TOY_DIR", "--", *words)), daemon=True
        )
        job.start()
        clusters.wait_until(lambda: steps_of(folder) or not job.is_alive(), 600, "step")
        assert job.is_alive(), done[0].stdout[-6000:]
        cluster.kill("second")
        cluster.add("third", {"pool": "explorer"})
        job.join(600)
        landed = cluster.nodes()
    assert done, "the job did not end"
    return folder, done[0], landed


def test_the_run_goes_on_with_the_explorer_on_another_node(run) -> None:
    folder, done, nodes = run
    assert done.returncode == 0, done.stdout[-6000:]
    assert nodes["second"] == "DEAD" and nodes["third"] == "ALIVE"
    steps = steps_of(folder)
    assert sorted(steps) == list(SLOTS) and steps[TOTAL]["s2l/explorer/restarts"] == 1
    roles = json.loads((folder / "placement.json").read_text())["roles"]
    assert {role: [place["name"] for place in places] for role, places in roles.items()} == {
        "explorer": ["third"],
        "learner": ["head"],
    }


def test_no_row_is_lost_with_the_node(run) -> None:
    for step, data in steps_of(run[0]).items():
        assert data["s2l/source/explorer/rows"] == SLOTS[step] * PROMPTS, step
        assert data["s2l/learner/missing_rows"] == 0, step
        assert data["s2l/source/learner/rows"] == (GROUP - SLOTS[step]) * PROMPTS, step
