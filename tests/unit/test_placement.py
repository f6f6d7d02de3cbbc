"""Label selectors: read as Ray reads them, and refused before the start where a role has no room."""

import pytest
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch.cluster import cluster_address
from s2l_ext.launch.placement import Node, Role, check_roles, roles, table
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.placement_rules import check_placement, matches

LEARNER, EXPLORER = {"pool": "learner"}, {"pool": "explorer"}
A = Node("a" * 56, "node-a", 8, {**LEARNER, "ray.io/node-id": "a"})
B = Node("b" * 56, "node-b", 8, EXPLORER)
C = Node("c" * 56, "node-c", 4)


def learner(count: int = 1, size: int = 8, selector=None) -> Role:
    return Role("learner", "trainer", count, size, selector)


def explorer(size: int = 8, selector=None, engine: int | None = None) -> Role:
    return Role("explorer", "s2l.explorer", 1, size, selector, engine)


def sampler(engine: int = 8) -> Role:
    return Role("sampler", "actor_rollout_ref.rollout", 1, 8, engine=engine)


@pytest.mark.parametrize(
    ("selector", "labels", "expected"),
    [
        (None, {}, True),
        ({"pool": "a"}, {"pool": "a", "zone": "b"}, True),
        ({"pool": "a"}, {"pool": "b"}, False),
        ({"pool": "a"}, {}, False),
        ({"pool": "!a"}, {}, True),
        ({"pool": "!a"}, {"pool": "a"}, False),
        ({"pool": "in(a, b)"}, {"pool": "b"}, True),
        ({"pool": "!in(a, b)"}, {"pool": "b"}, False),
        ({"pool": "!in(a,b)"}, {"pool": "c"}, True),
        ({"pool": "a", "zone": "b"}, {"pool": "a"}, False),
    ],
)
def test_a_selector_means_what_it_means_to_ray(selector, labels, expected) -> None:
    assert matches(selector, labels) is expected


def test_roles_with_room_pass() -> None:
    check_roles([learner(selector=LEARNER), explorer(selector=EXPLORER)], [A, B, C])
    check_roles([learner(), explorer()], [A, B])
    check_roles([learner(selector={"pool": "!explorer"}), explorer(selector=EXPLORER)], [A, B])
    check_roles([learner(1, 4), explorer(4, EXPLORER)], [A, B, C])  # shared, with room for both
    check_roles([learner(), explorer(selector=EXPLORER)], [A, B, C])  # Ray may choose badly: that has a time limit


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        (
            [learner(), explorer(selector={"pool": "gone"})],
            r"s2l\.placement\.explorer=\{pool: gone\}: no node of the cluster has these labels\. Nodes: node-a "
            r"\(aaaaaaaa\): pool=learner; node-b .*; node-c \(cccccccc\): no labels\. .* --labels pool=gone",
        ),
        (
            [learner(2, 8, LEARNER)],
            r"trainer\.nnodes=2 with trainer\.n_gpus_per_node=8: 2 x 8 accelerators are needed, each set on one node, "
            r"but only 1 fit\. The nodes that s2l\.placement\.learner=\{pool: learner\} matches have 8 \(node-a\)",
        ),
    ],
)
def test_no_room_is_refused_with_selector_nodes_and_fix(wanted, message) -> None:
    with pytest.raises(ResourceError, match=message):
        check_roles(wanted, [A, B, C])


@pytest.mark.parametrize(
    ("engine", "together", "groups"), [(None, 8, 2), (1, 1, 16), (4, 4, 4), (8, 8, 2), (16, 8, 2), (3, 3, 5)]
)
def test_a_server_is_placed_node_by_node(engine, together, groups) -> None:
    role = Role("explorer", "s2l.explorer", 2, 8, None, engine)
    assert (role.together, role.groups) == (together, groups)


def test_the_table_shows_who_may_go_where() -> None:
    lines = table([learner(2, 4, LEARNER), explorer(8)], [A, B, C]).splitlines()
    assert [line.split() for line in lines[:4]] == [
        ["node", "accelerators", "labels", "may", "hold"],
        ["node-a", "(aaaaaaaa)", "8", "pool=learner", "learner,", "explorer"],
        ["node-b", "(bbbbbbbb)", "8", "pool=explorer", "explorer"],
        ["node-c", "(cccccccc)", "4", "-", "-"],
    ]
    assert lines[4].strip() == "learner: 2 x 4 accelerator(s); s2l.placement.learner={pool: learner}"
    assert lines[5].strip() == "explorer: 1 x 8 accelerator(s); Ray chooses the node"


def test_roles_come_from_the_configuration_in_the_order_of_their_start() -> None:
    cfg = OmegaConf.create({"trainer": {"nnodes": 2, "n_gpus_per_node": 4}})
    block = {"explorer": {"model_path": "m", "n_gpus_per_node": 2}, "placement": {"explorer": EXPLORER}}
    assert roles(cfg, parse_s2l(block)) == [learner(2, 4), explorer(2, EXPLORER, 1)]
    block["explorer"] |= {"tensor_model_parallel_size": 2, "rollout_overrides": {"pipeline_model_parallel_size": 2}}
    assert roles(cfg, parse_s2l(block)) == [learner(2, 4), explorer(2, EXPLORER, 4)]
    assert roles(cfg, parse_s2l({})) == [learner(2, 4)]


def test_the_servers_of_a_reward_model_and_of_a_sampler_have_places_too() -> None:
    own = {"nnodes": 1, "n_gpus_per_node": 8}
    cfg = OmegaConf.create(
        {
            "trainer": {"nnodes": 2, "n_gpus_per_node": 4, "v1": {"trainer_mode": "separate_async"}},
            "actor_rollout_ref": {"rollout": {**own, "tensor_model_parallel_size": 2, "data_parallel_size": 2}},
            "reward": {"reward_model": {"enable": True, "enable_resource_pool": True, **own}},
        }
    )
    reward = Role("reward model", "reward.reward_model", 1, 8)
    assert roles(cfg, parse_s2l({})) == [learner(2, 4), reward, sampler(engine=4)]
    cfg.reward.reward_model.enable_resource_pool = False
    assert roles(cfg, parse_s2l({})) == [learner(2, 4), sampler(engine=4)]


def test_the_teacher_of_verls_own_distillation_has_its_place_once() -> None:
    """``s2l.distill`` sets verl's own up for a teacher on servers: the same GPUs under two keys."""
    own = {"enabled": True, "nnodes": 1, "n_gpus_per_node": 2}
    cfg = OmegaConf.create({"trainer": {"nnodes": 2, "n_gpus_per_node": 4}, "distillation": own})
    assert roles(cfg, parse_s2l({})) == [learner(2, 4), Role("verl's teacher", "distillation", 1, 2)]
    block = {"teacher_path": "t", "teacher_placement": "server", "nnodes": 1, "n_gpus_per_node": 2}
    block |= {"loss": "forward_kl"}
    assert roles(cfg, parse_s2l({"distill": block})) == [learner(2, 4), Role("teacher", "s2l.distill", 1, 2)]
    cfg.distillation.enabled = False
    assert roles(cfg, parse_s2l({})) == [learner(2, 4)]


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (
            {"placement": {"explorer": EXPLORER}},
            r"s2l\.placement\.explorer=\{pool: explorer\}: no explorer of this run",
        ),
        ({"placement": {"learner": {}}}, r"s2l\.placement\.learner=\{\} selects nothing"),
        ({"placement": {"learner": {"pool": 3}}}, r"s2l\.placement\.learner\.pool=3: not a label selector .* quote"),
        ({"placement": {"learner": {"pool": "in(a"}}}, r"not a label selector"),
        ({"placement": {"learner": {"-": "a"}}}, r"'-' is not a label"),
    ],
)
def test_selectors_that_cannot_apply_are_refused(block, message) -> None:
    with pytest.raises(ConfigError, match=message):
        check_placement(parse_s2l(block))


def test_a_ray_of_the_runs_own_has_no_labels_to_select(monkeypatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    cfg = OmegaConf.create({"ray_kwargs": {"ray_init": {}}, "s2l": {"placement": {"learner": LEARNER}}})
    with pytest.raises(ConfigError, match=r"s2l\.placement\.learner=.*starts its own Ray"):
        cluster_address(cfg)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(cfg) == "10.0.0.1:6379"
