"""Label selectors: read as Ray reads them, and refused before the start where a role has no room."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from s2l_ext.errors import ConfigError, ResourceError
from s2l_ext.launch.cluster import cluster_address
from s2l_ext.launch.placement import Node, Role, check_roles, roles, table
from s2l_ext.launch.worst_case import Claim, always_fits, shut_out
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


def machines(*accelerators: int, **labelled: int) -> list[Node]:
    """Nodes without labels, then nodes with ``pool``: of a key's letters all but the last are the label."""
    plain = [Node(f"{n}" * 8, f"n{n}", many) for n, many in enumerate(accelerators)]
    return plain + [Node(key * 4, key, many, {"pool": key[:-1]}) for key, many in labelled.items()]


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
            r"trainer\.nnodes=2 with trainer\.n_gpus_per_node=8: 8 accelerators on one node are there 1 time\(s\), "
            r"needed 2 time\(s\)\. The nodes that s2l\.placement\.learner=\{pool: learner\} matches have 8 \(node-a\)",
        ),
        (
            [learner(), explorer(selector=EXPLORER)],
            r"explorer \(s2l\.placement\.explorer=\{pool: explorer\}\) needs 8 accelerators on one node 1 "
            r"time\(s\), but Ray places learner first .*: learner 8 on node-b \(bbbbbbbb\)\. "
            r"Set s2l\.placement\.learner to labels that only node-a .*, node-c .* have\.",
        ),
    ],
)
def test_no_room_is_refused_with_selector_nodes_and_fix(wanted, message) -> None:
    with pytest.raises(ResourceError, match=message):
        check_roles(wanted, [A, B, C])


# ---- whatever Ray chooses -------------------------------------------------------------------------------------------

X = {"pool": "x"}


@pytest.mark.parametrize(
    ("wanted", "nodes", "message"),
    [
        ([learner(), explorer()], machines(8, 4, 4), "learner 8 on n0 .*No labels of learner and explorer help"),
        ([learner(), explorer()], machines(12, 12, 4, 4), None),
        (
            [learner(2, 4), explorer()],
            machines(8, 8),
            r"learner 4 on n0 \(00000000\), learner 4 on n1 \(11111111\)\. Set s2l\.placement\.learner to labels that "
            r"only n1 \(11111111\) have and s2l\.placement\.explorer to labels that only n0 \(00000000\) have\.",
        ),
        (
            [learner(selector=X), sampler(), explorer(selector=X)],
            machines(8, x1=8, x2=8),
            r"Ray places learner, sampler first .*sampler 8 on x1 .*, learner 8 on x2 .* Set "
            r"s2l\.placement\.learner to labels that only n0 \(00000000\) have\.",
        ),
        (
            [learner(1, 4), sampler()],
            machines(8, 4),
            r"sampler \(Ray chooses the node\) needs 8 .* Set s2l\.placement\.learner to labels that only n1 .* have\.",
        ),
        ([learner(selector=X), explorer(selector=X)], machines(4, 4, x1=8, x2=4, x3=4), "learner 8 on x1 .*No labels"),
    ],
)
def test_a_choice_of_rays_that_leaves_no_place_is_refused_with_labels_that_do(wanted, nodes, message) -> None:
    if message is None:
        check_roles(wanted, nodes)
        return
    with pytest.raises(ResourceError, match=message):
        check_roles(wanted, nodes)


@pytest.mark.parametrize(
    ("wanted", "nodes"),
    [
        ([learner(), explorer()], machines(16)),
        ([learner(), explorer()], machines(8, 8)),
        ([learner(), explorer(engine=1)], machines(8, 4, 4)),  # eight servers of one accelerator each
        ([learner(2, 4), explorer(engine=4)], machines(8, 8)),
        ([learner(), sampler(), explorer()], machines(8, x1=8, x2=8)),
        ([learner(1, 1), explorer(1, engine=1)], machines(2)),  # the toy on one CPU node
        ([learner(2, 1, LEARNER), explorer(1, EXPLORER, 1)], machines(learner1=1, explorer1=1, learner2=1)),
        ([learner(1, 1), explorer(1, engine=1)], machines(1, 1, 1)),
        ([learner(2, 8, X), explorer(8, {"pool": "!x"}, 8)], machines(0, x1=8, x2=8, y1=8)),
    ],
)
def test_what_fits_whatever_ray_chooses_passes(wanted, nodes) -> None:
    check_roles(wanted, nodes)


def may_wait_for_ever(claims, room) -> bool:
    """By trying every choice for every group, one after the other."""
    groups = [claim for claim in claims for _ in range(claim.groups)]

    @cache
    def stuck(number: int, free: tuple[int, ...]) -> bool:
        if number == len(groups):
            return False
        claim = groups[number]
        fitting = [node for node in claim.nodes if free[node] >= claim.size]
        after = ((*free[:node], free[node] - claim.size, *free[node + 1 :]) for node in fitting)
        return not fitting or any(stuck(number + 1, left) for left in after)

    return stuck(0, tuple(room))


@settings(deadline=None)
@given(st.data(), st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_the_worst_case_is_that_of_every_choice_tried(data, room) -> None:
    numbers = st.frozensets(st.integers(0, len(room) - 1), min_size=1)
    claims = data.draw(
        st.lists(st.builds(Claim, st.integers(1, 3), st.integers(1, 4), numbers), min_size=1, max_size=3)
    )
    assert always_fits(claims, room) is not may_wait_for_ever(claims, room)


def test_many_nodes_are_judged_soon() -> None:
    every = frozenset(range(60))
    first, last = [Claim(30, 8, every), Claim(4, 4, every)], Claim(4, 8, every)
    assert shut_out([*first, Claim(22, 2, every), last], [8] * 60) is None  # 59 groups before the last one
    assert shut_out([*first, Claim(23, 2, every), last], [8] * 60) is not None


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
    with pytest.raises(ConfigError, match=r"s2l\.placement\.learner=.*starts a Ray of its own"):
        cluster_address(cfg)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert cluster_address(cfg) == "10.0.0.1:6379"
