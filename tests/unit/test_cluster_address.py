"""Which cluster a run joins, and what it does there first. Ray's calls are answered here; no cluster is started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch import train
from s2l_ext.launch.cluster import CheckedRunner, cluster_address
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import registration

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_cluster_named")]


# ---- addresses ------------------------------------------------------------------------------------------------------


def test_who_names_a_cluster(configured, monkeypatch):
    assert cluster_address(configured()) is None
    assert cluster_address(configured(ray_kwargs__ray_init__address="local")) is None
    assert cluster_address(configured(ray_kwargs__ray_init__address="auto")) == "auto"
    assert cluster_address(configured(ray_kwargs__ray_init__address="10.0.0.1:6379")) == "10.0.0.1:6379"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    assert cluster_address(configured()) == "10.0.0.2:6379"
    assert cluster_address(configured(ray_kwargs__ray_init__address="auto")) == "10.0.0.2:6379"
    assert cluster_address(configured(ray_kwargs__ray_init__address="10.0.0.1:6379")) == "10.0.0.1:6379"
    assert cluster_address(configured(ray_kwargs__ray_init__address="local")) is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address(configured()) is None


def test_a_cluster_that_was_started_here_is_joined_unless_told_not_to(configured, tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text("10.0.0.3:6379\n")
    assert cluster_address(configured()) == "10.0.0.3:6379"
    assert cluster_address(configured("s2l_po/toy", ray_kwargs__ray_init__address="local")) is None
    with pytest.raises(
        ConfigError, match=r"joins the cluster at 10\.0\.0\.3:6379.*Or ray_kwargs\.ray_init\.address=local"
    ):
        cluster_address(configured("s2l_po/toy"))


OWN_RAY = """
import os, sys
from s2l_ext.launch.train import prepare
from s2l_ext.errors import S2LError
try:
    prepare("s2l_po/toy", sys.argv[1:])
except S2LError as error:
    print(error)
import ray
print("NODE", ray.util.get_node_ip_address(), os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"])
"""


@pytest.mark.slow
@pytest.mark.parametrize("given", [None, "1"])
def test_a_ray_of_the_runs_own_stays_at_loopback_unless_the_user_says_otherwise(given, monkeypatch):
    monkeypatch.delenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", raising=False)
    if given is not None:
        monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", given)
    done = subprocess.run([sys.executable, "-c", OWN_RAY], capture_output=True, text=True, timeout=120)
    node, variable = next(line.split()[1:] for line in done.stdout.splitlines() if line.startswith("NODE "))
    assert variable == (given or "0")
    assert given or node == "127.0.0.1"


def test_sizes_that_only_a_new_cluster_has_are_refused(configured, monkeypatch):
    assert cluster_address(configured("s2l_po/toy")) is None
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.2:6379")
    with pytest.raises(ConfigError) as refusal:
        cluster_address(configured("s2l_po/toy"))
    assert "ray_kwargs.ray_init.num_cpus=16, ray_kwargs.ray_init.num_gpus=2: the run joins the cluster at" in str(
        refusal.value
    )
    assert "Set ray_kwargs.ray_init.num_cpus=null ray_kwargs.ray_init.num_gpus=null." in str(refusal.value)
    fits = configured("s2l_po/toy", ray_kwargs__ray_init__num_cpus=None, ray_kwargs__ray_init__num_gpus=None)
    assert cluster_address(fits) == "10.0.0.2:6379"


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(scheme, closed_port):
    address = f"{scheme}127.0.0.1:{closed_port}"
    wanted = f"the Ray cluster cannot be reached at {address} .*refused.*ray start --head"
    with pytest.raises(ResourceError, match=wanted), cluster_check.joining(address):
        pytest.fail("joined")


def test_rays_own_failure_to_join_is_one_message(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(ResourceError, match=r"cannot be reached at auto \(no running Ray instance\)"),
        cluster_check.joining("auto"),
    ):
        raise ConnectionError("no running Ray instance")


def test_a_cluster_that_asks_for_a_token_says_what_to_set(monkeypatch):
    """Ray hands the reason on as the text of a RuntimeError."""
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with (
        pytest.raises(ResourceError, match=r"refuses to be joined.*RAY_AUTH_MODE=token"),
        cluster_check.joining("auto"),
    ):
        try:
            raise RuntimeError("Last connection error: Traceback ...\nray.exceptions.AuthenticationError: RPC error")
        except RuntimeError as error:
            raise ConnectionError("Failed to connect to Ray cluster at 10.0.0.1:6379") from error


def test_a_connection_that_breaks_while_training_passes_as_it_is(monkeypatch):
    monkeypatch.setattr(ray, "is_initialized", lambda: True)
    with pytest.raises(ConnectionError, match="reset by peer"), cluster_check.joining("auto"):
        raise ConnectionError("reset by peer")
    with pytest.raises(ConnectionError, match="of our own"), cluster_check.joining(None):
        raise ConnectionError("of our own")


# ---- s2l train ------------------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(configured, monkeypatch, tmp_path):
    """A run whose verl is a note of what it was given."""
    given = SimpleNamespace(runner=None, lock=None, forking=0)

    def run_ppo(cfg, task_runner_class):
        given.runner = task_runner_class
        given.lock = json.loads((tmp_path / ".lock").read_text())

    main_ppo = SimpleNamespace(TaskRunnerV1="verl's", run_ppo=run_ppo)
    monkeypatch.setitem(sys.modules, "verl.trainer.main_ppo", main_ppo)
    monkeypatch.setattr(registration, "require_registered", lambda where: None)
    monkeypatch.setattr(train, "fork_workers", lambda cfg: setattr(given, "forking", given.forking + 1))
    cfg = configured(trainer__default_local_dir=str(tmp_path))
    return given, train.Prepared(cfg, parse_s2l(cfg.s2l), {}, [])


def test_train_checks_the_nodes_only_of_a_cluster_that_is_named(prepared, monkeypatch):
    given, run = prepared
    train.run(run)
    assert given.runner == "verl's" and given.forking == 1
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    train.run(run)
    assert isinstance(given.runner, CheckedRunner) and given.forking == 1, "no fork server beside a cluster"


def test_train_holds_its_folder_while_verl_runs(prepared, tmp_path):
    given, run = prepared
    train.run(run)
    assert given.lock["pid"] == os.getpid() and given.lock["host"] == socket.gethostname()
    assert (tmp_path / ".lock").read_text() == ""


def test_a_second_run_in_the_folder_is_refused_before_it_writes(prepared, tmp_path):
    given, run = prepared
    holder = {"pid": 4711, "host": "node-3", "token": ""}
    (tmp_path / ".lock").write_text(json.dumps(holder))
    with pytest.raises(
        ResourceError, match=r"another training run works here: process 4711 on host node-3.*default_local"
    ):
        train.run(run)
    assert given.runner is None and not (tmp_path / train.CONFIG_FILE).exists()


def test_an_unreachable_cluster_frees_the_folder_again(prepared, tmp_path, monkeypatch, closed_port):
    given, run = prepared
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port}")
    with pytest.raises(ResourceError, match="the Ray cluster cannot be reached"):
        train.run(run)
    assert given.runner is None and (tmp_path / ".lock").read_text() == ""
