"""Placement groups that verl makes: their labels, their time limit, and where Ray put them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections import Counter
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray._private.state import available_resources_per_node
from verl.single_controller.ray import ResourcePoolManager
from verl.utils.device import get_device_name, get_resource_name

from s2l_ext.errors import ResourceError
from s2l_ext.platforms.patches.training import replace_placement_group
from s2l_ext.training.placement_rules import Selector, format_selector
from s2l_ext.utils.files import write_atomically

logger = logging.getLogger(__name__)

FILE_NAME = "placement.json"
PLACE_SECONDS = 600.0
"""For each placement group of a run. The sizes of the nodes were checked before."""
POOLS = {"global_pool": "learner", "teacher_pool": "teacher", "reward_pool": "reward model"}
STANDALONE = "rollout_pool_"
"""verl's name of a standalone replica's pool, before the replica's rank."""
FIRST_REPLICA_RANK = 1000
"""Of the explorer. Replica ranks name Ray actors; the learner's count from 0."""
OPEN_CALLS = 100_000
"""Calls that an explorer's server may have begun. Ray begins them in order, and a step has more sessions than verl's
1000: beyond these the health check would wait for the sessions before it, and a healthy server be taken for dead."""
_request: ContextVar[tuple[Selector | None, float]] = ContextVar("s2l_placement", default=(None, PLACE_SECONDS))


@contextlib.contextmanager
def on_nodes(selector: Selector | None, seconds: float = PLACE_SECONDS) -> Iterator[None]:
    """Placement groups that verl makes inside go to nodes with these labels only, within ``seconds`` each.

    verl's pools call Ray's ``placement_group`` and offer no argument for either. A context variable carries both,
    because replicas start side by side in coroutines and threads and must not see each other's selector.
    """
    replace_placement_group(_placement_group)
    token = _request.set((selector, seconds))
    try:
        yield
    finally:
        _request.reset(token)


def _placement_group(bundles: list[dict[str, float]], **options: Any) -> Any:
    """Ray's, once it is placed. Raises ResourceError: no nodes had enough free in time. Shows the nodes, what they
    hold, and the waiting groups."""
    selector, seconds = _request.get()
    if selector is not None:
        options["bundle_label_selector"] = [dict(selector) for _ in bundles]
    group = ray.util.placement_group(bundles, **options)
    if not ray.wait([group.ready()], timeout=seconds)[0]:
        table = cluster_table()
        ray.util.remove_placement_group(group)
        role = role_of(str(options.get("name"))) or "this run"
        where = f" on nodes with the labels {format_selector(selector)}" if selector else ""
        raise ResourceError(
            f"Ray could not place the {role} within {seconds:.0f} s: {_describe(bundles)}{where}, on one node."
            f"\n{table}\nAdd nodes or CPUs, end other programs, ask for fewer, or separate the roles with "
            "s2l.placement."
        )
    return group


@dataclass
class PlacedPools(ResourcePoolManager):
    """verl's pools; those with a selector are placed at once, before their first worker asks for it."""

    selectors: dict[str, Selector] = field(default_factory=dict)

    def create_resource_pool(self) -> None:
        super().create_resource_pool()
        for name, selector in self.selectors.items():
            with on_nodes(selector):
                self.resource_pool_dict[name].get_placement_groups(device_name=get_device_name())


def placed_learner(manager: ResourcePoolManager, selector: Selector | None) -> ResourcePoolManager:
    """The trainer's pools with the learner's on the selector's nodes; all of them have a time limit."""
    replace_placement_group(_placement_group)
    if selector is None:
        return manager
    return PlacedPools(manager.resource_pool_spec, manager.mapping, selectors={"global_pool": selector})


def placed_replica(replica_class: type, selector: Selector | None, seconds: float = PLACE_SECONDS) -> type:
    """verl's replica class, with every start of a standalone replica on the selector's nodes within ``seconds``.

    Its servers begin :data:`OPEN_CALLS` at once.
    """

    class PlacedReplica(replica_class):  # type: ignore[misc]
        max_concurrency = OPEN_CALLS

        async def init_standalone(self) -> None:
            with on_nodes(selector, seconds):
                await super().init_standalone()

    return PlacedReplica


# ---- who holds what -------------------------------------------------------------------------------------------------


def cluster_table() -> str:
    """A line for each node: accelerators and CPUs, how many are free, labels, whose groups it holds; then every group
    that waits for a place."""
    device, free = get_resource_name(), available_resources_per_node()
    groups = [entry for entry in ray.util.placement_group_table().values() if entry["state"] != "REMOVED"]
    rows: list[tuple[str, ...]] = [("node", f"{device} free", "CPU free", "labels", "holds")]
    for node in (node for node in ray.nodes() if node["Alive"]):
        left, has = free.get(node["NodeID"], {}), node["Resources"]
        amounts = [f"{left.get(name, 0):g} of {has.get(name, 0):g}" for name in (device, "CPU")]
        labels = ", ".join(f"{key}={value}" for key, value in sorted(_labels(node).items()))
        rows.append((f"{node['NodeName']} ({node['NodeID'][:8]})", *amounts, labels or "-", _holders_of(node, groups)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    waiting = [entry for entry in groups if entry["state"] != "CREATED"]
    lines += [f"{_owner_of(entry)} waits for {_describe(list(entry['bundles'].values()))}" for entry in waiting]
    return "\n".join(f"  {line}" for line in lines)


def _holders_of(node: dict[str, Any], groups: list[dict[str, Any]]) -> str:
    places = [(_owner_of(entry), place) for entry in groups for place in entry["bundles_to_node_id"].values()]
    counts = Counter(who for who, place in places if place == node["NodeID"])
    return ", ".join(f"{who} {n}" for who, n in sorted(counts.items())) or "-"


def _owner_of(entry: dict[str, Any]) -> str:
    """Groups of other jobs have the same names as this one's."""
    return role_of(entry["name"]) or entry["name"] or "a group without a name"


def _describe(bundles: list[dict[str, float]]) -> str:
    one = " + ".join(f"{amount:g} {name}" for name, amount in sorted(bundles[0].items()))
    return f"{len(bundles)} x ({one})"


def _labels(node: dict[str, Any]) -> dict[str, str]:
    """Without those that Ray gives every node."""
    return {key: value for key, value in node["Labels"].items() if not key.startswith("ray.io/")}


def role_of(name: str) -> str | None:
    """Whose a placement group is, by the name of verl's pool; None for somebody else's."""
    pool = name.partition("verl_group_")[0]
    rank = pool.removeprefix(STANDALONE).partition("_")[0]
    if pool.startswith(STANDALONE) and rank.isdigit():
        return "explorer" if int(rank) >= FIRST_REPLICA_RANK else "sampler"
    return POOLS.get(pool)


# ---- where Ray put them ---------------------------------------------------------------------------------------------


def record(folder: Path) -> dict[str, Any]:
    """Write ``placement.json`` and log one line: the nodes of every role that has accelerators, and the trainer's."""
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    report = {"trainer": _describe_node(nodes[ray.get_runtime_context().get_node_id()]), "roles": {}}
    for role, places in sorted(accelerators_by_role().items()):
        here = [{**_describe_node(nodes[one]), "accelerators": n} for one, n in places.items() if one in nodes]
        report["roles"][role] = here
    names = {role: ", ".join(place["name"] for place in places) for role, places in report["roles"].items()}
    logger.info("placement: %s", "; ".join(f"{role} on {on}" for role, on in names.items()))
    write_atomically(folder / FILE_NAME, json.dumps(report, indent=1) + "\n")
    return report


def _describe_node(node: dict[str, Any]) -> dict[str, Any]:
    address = node["NodeManagerAddress"]
    return {"node": node["NodeID"], "name": node["NodeName"], "address": address, "labels": _labels(node)}


def accelerators_by_role() -> dict[str, dict[str, int]]:
    """Accelerators by node id, by role, of this run's placement groups."""
    found: dict[str, dict[str, int]] = {}
    for identity, entry in ray.util.placement_group_table().items():
        role = role_of(entry["name"])
        if role is None or entry["state"] != "CREATED" or not _is_ours(identity, entry["name"]):
            continue
        places = found.setdefault(role, {})
        for node in entry["bundles_to_node_id"].values():
            places[node] = places.get(node, 0) + 1
    return found


def _is_ours(identity: str, name: str) -> bool:
    """Names are looked up in this job's namespace; other runs of the cluster have the same ones."""
    try:
        return bool(ray.util.get_placement_group(name).id.hex() == identity)
    except ValueError:
        return False
