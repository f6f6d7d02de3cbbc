"""Three nodes on this machine: S2L-PO as a job by ``s2l submit`` and by ``ray job submit``, its log, its exit codes,
stopping it, where its roles went, and two runs in one folder."""

import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

STEPS = 2
PLACED = ("trainer.nnodes=2", "s2l.placement.learner={pool: learner}", "s2l.placement.explorer={pool: explorer}")
STARTED = re.compile(r"raysubmit_\w+")


@pytest.fixture(scope="module")
def cluster(clusters, toy_dir) -> Iterator:
    with clusters.three_nodes(S2L_TOY_DIR=str(toy_dir)) as three:
        yield three


@pytest.fixture(scope="module")
def train(clusters, small_run):
    """Words of ``s2l``: the toy recipe, on a cluster."""

    def of(folder: Path, *overrides: str) -> list[str]:
        words = ["train", "--config-name", "s2l_po/toy", *small_run, *clusters.JOINING]
        return [*words, f"trainer.default_local_dir={folder}", f"trainer.total_training_steps={STEPS}", *overrides]

    return of


@pytest.fixture(scope="module")
def submit(cluster, train):
    def send(folder: Path, *overrides: str, follow: str = "--follow") -> subprocess.CompletedProcess[str]:
        return cluster.submit(follow, "--env", "S2L_TOY_DIR", "--", *train(folder, *overrides))

    return send


class Background(threading.Thread):
    """A call whose result is wanted later."""

    def __init__(self, call) -> None:
        super().__init__(daemon=True)
        self.call = call
        self.start()

    def run(self) -> None:
        self.done = self.call()

    def result(self) -> subprocess.CompletedProcess[str]:
        self.join(900)
        return self.done


@pytest.fixture(scope="module")
def runs(cluster, clusters, submit, tmp_path_factory):
    """The folder, the job that trained there, and two that wanted to meanwhile: there, and in another folder."""
    folder = tmp_path_factory.mktemp("job")
    first = Background(lambda: submit(folder, *PLACED))
    clusters.wait_until(lambda: (folder / "plan.json").exists(), 120, "plan")
    holder = json.loads((folder / ".lock").read_text())
    second = submit(folder)
    other = submit(tmp_path_factory.mktemp("other"))
    return folder, first.result(), holder, second, other


@pytest.fixture(scope="module")
def finished(runs):
    return runs[:2]


def steps_of(folder: Path) -> list[dict]:
    lines = [json.loads(line)["data"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "training/global_step" in line]


def test_a_job_trains_and_its_log_and_success_come_back(finished) -> None:
    folder, done = finished
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "s2l train: plan" in done.stdout
    assert [line["s2l/explorer/rollouts_per_group"] for line in steps_of(folder)] == [
        4,
        4,
    ]  # ceil of 1 and 6/7 of four sessions


def test_every_node_was_asked_before_training(finished) -> None:
    _, done = finished
    assert re.search(r"3 node\(s\) run s2l_ext \S+ with its verl plugin", done.stdout)
    assert done.stdout.index("with its verl plugin") < done.stdout.index("training/global_step")


def test_who_may_go_where_is_told_before_training(finished) -> None:
    _, done = finished
    told = done.stdout[done.stdout.index("s2l: placement") : done.stdout.index("training/global_step")]
    assert re.search(r"second \(\w{8}\) +1 +pool=explorer +explorer\n", told)
    assert "learner: 2 x 1 accelerator(s); s2l.placement.learner={pool: learner}" in told


def test_every_role_is_where_its_labels_say(finished) -> None:
    folder, _ = finished
    landed = json.loads((folder / "placement.json").read_text())
    names = {role: [place["name"] for place in places] for role, places in landed["roles"].items()}
    assert sorted(names.pop("learner")) == ["head", "third"]
    assert names == {"explorer": ["second"]}
    assert landed["trainer"]["labels"] == {"pool": "learner"}


def test_the_folder_is_free_afterwards(finished) -> None:
    folder, _ = finished
    assert (folder / ".lock").read_text() == ""


def test_a_second_run_in_its_folder_was_refused(runs) -> None:
    _, _, holder, second, _ = runs
    assert second.returncode == 2
    assert f"works here: process {holder['pid']} on host {holder['host']}" in second.stdout


def test_another_run_on_the_cluster_was_refused_and_left_the_first_alone(runs) -> None:
    """verl's queue exists once in a cluster; the first one's success is asserted above."""
    other = runs[4]
    assert other.returncode == 2
    assert "the cluster trains already (Ray job " in other.stdout


@pytest.mark.long
def test_rays_own_command_does_the_same(cluster, train, tmp_path) -> None:
    words = ["ray", "job", "submit", "--address", cluster.address, "--runtime-env-json"]
    variables = json.dumps({"env_vars": {"S2L_TOY_DIR": cluster.environment["S2L_TOY_DIR"]}})
    done = cluster.run(*words, variables, "--", "python", "-m", "s2l_ext.cli", *train(tmp_path))
    assert done.returncode == 0, done.stdout[-6000:]
    job = STARTED.search(done.stdout)
    assert job is not None and cluster.state(job[0]) == "SUCCEEDED"
    assert len(steps_of(tmp_path)) == STEPS


def test_refusals_on_the_cluster_are_exit_code_2_with_their_message(cluster, submit, clusters, tmp_path) -> None:
    (tmp_path / "env.yaml").write_text("env_vars: {VERL_USE_EXTERNAL_PLUGINS: other}\n")
    plain = ["train", "--config-name", "s2l_po/toy", *clusters.JOINING, f"trainer.default_local_dir={tmp_path / 'c'}"]
    told = {
        "actor_rollout_ref.model.path=/no/such/model: no such folder": Background(
            lambda: submit(tmp_path / "a", "actor_rollout_ref.model.path=/no/such/model")
        ),
        "the run needs 4 accelerators = 1 (learner) + 3 (explorer), but 3 are there": Background(
            lambda: submit(tmp_path / "b", "s2l.explorer.n_gpus_per_node=3")
        ),
        "s2l.placement.explorer={pool: none}: no node of the cluster has these labels. Nodes: head (": Background(
            lambda: submit(tmp_path / "d", "s2l.placement.explorer={pool: none}")
        ),
        "Unknown platform 'cpu'": Background(  # which the plugin would have registered
            lambda: cluster.submit("--runtime-env", str(tmp_path / "env.yaml"), "--env", "S2L_TOY_DIR", "--", *plain)
        ),
    }
    for message, running in told.items():
        done = running.result()
        assert done.returncode == 2, done.stdout[-3000:]
        assert message in done.stdout


def test_a_running_job_can_be_stopped(cluster, submit, clusters, tmp_path) -> None:
    job = STARTED.search(submit(tmp_path, "trainer.total_training_steps=1000", follow="--no-follow").stdout)
    assert job is not None
    clusters.wait_until(lambda: (tmp_path / "plan.json").exists(), 120, "plan")
    assert cluster.state(job[0]) == "RUNNING"
    stopped = cluster.submit("--stop", job[0])
    assert stopped.returncode == 0 and "STOPPED" in stopped.stdout
    assert cluster.state(job[0]) == "STOPPED"
    assert "had ended before: STOPPED" in cluster.submit("--stop", job[0]).stdout
    with open(tmp_path / ".lock") as lock:
        import fcntl

        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # its process is gone


def test_a_client_without_the_clusters_token_is_told_so(cluster) -> None:
    without = {**cluster.environment, "RAY_AUTH_MODE": ""}
    command = [sys.executable, "-m", "s2l_ext.cli", "submit", "--address", cluster.address, "--", "doctor"]
    done = subprocess.run(
        command, env={k: v for k, v in without.items() if v}, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert "RAY_AUTH_MODE=token" in done.stderr and "Traceback" not in done.stderr
