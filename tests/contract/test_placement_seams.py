"""Where verl makes its placement groups, and what this package adds to them; no Ray is started."""

import asyncio
import inspect
import itertools
from types import SimpleNamespace

import pytest
import ray
from ray._private.label_utils import validate_label_selector
from ray.util.placement_group import placement_group as rays_own
from verl.single_controller.ray import RayResourcePool, ResourcePoolManager, base
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.workers.rollout.replica import RolloutReplica
from verl.workers.rollout.vllm_rollout.vllm_async_server import vLLMReplica

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.methods.explorer.serving.replica import Replica
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training import label_selectors as placed
from s2l_ext.training.placement_rules import check_placement

pytestmark = pytest.mark.contract
EXPLORER = {"pool": "explorer"}


class Asked(list):
    """Placement groups that Ray was asked for, each as keywords."""

    def __call__(self, bundles, **options):
        self.append({"bundles": bundles, **options})
        return type("Group", (), {"ready": lambda self: "ready", "id": None})()


@pytest.fixture
def asked(monkeypatch) -> Asked:
    groups = Asked()
    monkeypatch.setattr(ray.util, "placement_group", groups)
    monkeypatch.setattr(base, "placement_group", groups)
    monkeypatch.setattr(base, "sort_placement_group_by_node_ip", list)
    monkeypatch.setattr(base.ray, "get", lambda calls: None)
    monkeypatch.setattr(ray, "wait", lambda calls, timeout: (calls, []))
    return groups


def test_verl_asks_for_groups_under_the_name_we_replace_and_with_no_selector(asked) -> None:
    RayResourcePool([2, 2]).get_placement_groups(device_name="cpu")
    assert len(asked) == 2 and set(asked[0]) == {"bundles", "strategy", "name", "lifetime"}
    assert "bundle_label_selector" in inspect.signature(inspect.unwrap(rays_own)).parameters


def test_a_selector_is_added_for_every_bundle_and_nothing_else_changes(asked) -> None:
    RayResourcePool([2], name_prefix="one").get_placement_groups(device_name="cpu")
    with placed.on_nodes(EXPLORER):
        RayResourcePool([2], name_prefix="one").get_placement_groups(device_name="cpu")
    RayResourcePool([2], name_prefix="one").get_placement_groups(device_name="cpu")
    plain, chosen, after = asked
    assert chosen == plain | {"bundle_label_selector": [EXPLORER, EXPLORER]}
    assert after == plain


def test_replicas_that_start_side_by_side_keep_their_own_selector(asked) -> None:
    async def start(selector) -> None:
        with placed.on_nodes(selector):
            await asyncio.sleep(0)
            RayResourcePool([1]).get_placement_groups(device_name="cpu")
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(start(EXPLORER), start({"pool": "other"}), start(None))

    asyncio.run(both())
    assert [one.get("bundle_label_selector") for one in asked] == [[EXPLORER], [{"pool": "other"}], None]


def test_the_learners_pool_is_placed_before_its_workers_and_the_others_later(asked, monkeypatch) -> None:
    monkeypatch.setattr(ResourcePoolManager, "_check_resource_available", lambda self: None)
    plain = ResourcePoolManager({"global_pool": [1, 1], "teacher_pool": [1]}, {})
    manager = placed.placed_learner(plain, {"pool": "learner"})
    manager.create_resource_pool()
    assert [one["bundle_label_selector"] for one in asked] == [[{"pool": "learner"}]] * 2
    assert placed.placed_learner(plain, None) is plain and base.placement_group is placed._placement_group
    assert "self.resource_pool_manager.create_resource_pool()" in inspect.getsource(PPOTrainer._setup)


def test_a_standalone_replica_makes_its_pool_in_the_method_we_override() -> None:
    source = inspect.getsource(RolloutReplica.init_standalone)
    assert "ResourcePoolManager(" in source and placed.STANDALONE in source
    assert list(inspect.signature(placed.placed_replica(RolloutReplica, EXPLORER).init_standalone).parameters) == [
        "self"
    ]


def answers(replica_class: type, seconds: float) -> bool:
    """Whether a server of this class says within ``seconds`` that it lives, while 1100 sessions are open on it."""

    class Server:  # inside: Ray sends it by value
        async def generate(self) -> None:
            await asyncio.sleep(60)

        async def collective_rpc(self, method: str) -> None:
            assert method == "check_health"

        async def started(self) -> bool:
            return True

    replica = object.__new__(replica_class)
    replica.config = SimpleNamespace(max_num_seqs=256)
    server = ray.remote(Server).options(max_concurrency=replica.max_concurrency, num_cpus=0).remote()
    ray.get(server.started.remote())
    sessions = [server.generate.remote() for _ in range(1100)]
    asked = Replica(lambda start: None, placed.FIRST_REPLICA_RANK, 1)
    asked._verls = SimpleNamespace(servers=[server])
    answered, _ = ray.wait(asked.ask(), timeout=seconds)
    assert len(sessions) == 1100
    return bool(answered)


@pytest.mark.slow
def test_a_server_with_more_sessions_than_verl_begins_at_once_still_says_that_it_lives() -> None:
    """Where a server of verl's own class answers too, the limit of ours has no purpose left: as of 0.9.1 it has."""
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        assert answers(placed.placed_replica(vLLMReplica, None), seconds=30)
        assert not answers(vLLMReplica, seconds=5)
    finally:
        ray.shutdown()


def test_verls_server_takes_its_limit_of_open_calls_from_the_replica() -> None:
    assert "max_concurrency=self.max_concurrency" in inspect.getsource(vLLMReplica.launch_servers)


def test_pools_have_the_names_by_which_we_tell_roles() -> None:
    source = inspect.getsource(PPOTrainer._init_resource_pool_mgr)
    assert all(f'"{name}"' in source for name in placed.POOLS)
    assert placed.role_of("global_poolverl_group_1_1:0") == "learner"
    assert placed.role_of("rollout_pool_1000_again1verl_group_1:0") == "explorer"
    assert placed.role_of("rollout_pool_3verl_group_1:0") == "sampler"
    assert placed.role_of("somebody_elses") is None


@pytest.mark.slow
def test_what_finds_no_room_in_time_ends_with_the_table_of_nodes(monkeypatch) -> None:
    """On a real Ray of one node with three CPUs, of which another role holds two."""
    monkeypatch.setattr(base, "placement_group", rays_own)
    ray.init(num_cpus=3, include_dashboard=False, labels={"pool": "a"}, _node_name="n0")
    try:
        with placed.on_nodes({"pool": "a"}, seconds=60):
            held = RayResourcePool([1], use_gpu=False, name_prefix="global_pool", max_colocate_count=2)
            held.get_placement_groups(device_name="cpu")
        waiting = RayResourcePool([2], use_gpu=False, name_prefix="teacher_pool", max_colocate_count=1)
        with pytest.raises(ResourceError) as failure, placed.on_nodes({"pool": "a"}, seconds=1):
            waiting.get_placement_groups(device_name="cpu")
    finally:
        ray.shutdown()
    said = str(failure.value)
    assert "could not place the teacher within 1 s: 2 x (1 CPU) on nodes with the labels {pool: a}" in said
    row = next(line for line in said.splitlines() if "n0 (" in line)
    assert "1 of 3" in row and "pool=a" in row and row.endswith("learner 1")
    assert "  teacher waits for 2 x (1 CPU)" in said.splitlines()


KEYS = ["pool", "a/b", "a.b/c", "-pool", "po ol", "p" * 64]
VALUES = ["x", "!x", "in(a, b)", "!in(a,b)", "in()", "!!x", "in(a,  b)", "x_", "", "x" * 64, "in(a", "a b"]


@pytest.mark.parametrize(("key", "value"), itertools.product(KEYS, VALUES))
def test_what_we_accept_ray_accepts(key: str, value: str) -> None:
    block = parse_s2l({"placement": {"learner": {key: value}}})
    if validate_label_selector({key: value}) is not None:
        with pytest.raises(ConfigError, match=r"s2l\.placement\.learner"):
            check_placement(block)
    elif value:
        check_placement(block)
