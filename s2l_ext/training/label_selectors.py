"""Label selectors for the placement groups that verl makes, and where Ray put them."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from verl.single_controller.ray import ResourcePoolManager, base
from verl.utils.device import get_device_name

from s2l_ext.training.placement_rules import Selector
from s2l_ext.utils.files import write_atomically

logger = logging.getLogger(__name__)

FILE_NAME = "placement.json"
POOLS = {"global_pool": "learner", "teacher_pool": "teacher", "reward_pool": "reward model"}
STANDALONE = "rollout_pool_"
"""verl's name of a standalone replica's pool, before the replica's rank."""
_selector: ContextVar[Selector | None] = ContextVar("s2l_selector", default=None)


@contextlib.contextmanager
def on_nodes(selector: Selector | None) -> Iterator[None]:
    """Placement groups that verl makes inside go to nodes with these labels only.

    verl's pools call Ray's ``placement_group`` without a selector and offer no argument for one. A context variable:
    replicas start side by side in coroutines and threads.
    """
    if selector is None:
        yield
        return
    if base.placement_group is ray.util.placement_group:
        base.placement_group = _placement_group
    token = _selector.set(selector)
    try:
        yield
    finally:
        _selector.reset(token)


def _placement_group(bundles: list[dict[str, float]], **options: Any) -> Any:
    selector = _selector.get()
    if selector is not None:
        options["bundle_label_selector"] = [dict(selector) for _ in bundles]
    return ray.util.placement_group(bundles, **options)


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
    """The trainer's pools with the learner's on the selector's nodes."""
    if selector is None:
        return manager
    return PlacedPools(manager.resource_pool_spec, manager.mapping, selectors={"global_pool": selector})


def placed_replica(replica_class: type, selector: Selector | None) -> type:
    """verl's replica class, with every start of a standalone replica on the selector's nodes."""
    if selector is None:
        return replica_class

    class PlacedReplica(replica_class):  # type: ignore[misc]
        async def init_standalone(self) -> None:
            with on_nodes(selector):
                await super().init_standalone()

    return PlacedReplica


# ---- where Ray put them ---------------------------------------------------------------------------------------------


def record(folder: Path, first_explorer_rank: int) -> dict[str, Any]:
    """Write ``placement.json`` and log one line: the nodes of every role that has accelerators, and the trainer's."""
    nodes = {node["NodeID"]: node for node in ray.nodes() if node["Alive"]}
    found = landed(first_explorer_rank)
    here = ray.get_runtime_context().get_node_id()
    found = {role: {one: n for one, n in places.items() if one in nodes} for role, places in found.items()}
    names = {role: [nodes[one]["NodeName"] for one in places] for role, places in found.items()}
    logger.info("placement: %s", "; ".join(f"{role} on {', '.join(on)}" for role, on in sorted(names.items())))
    report = {"trainer": _described(nodes[here]), "roles": {}}
    for role, places in sorted(found.items()):
        report["roles"][role] = [{**_described(nodes[one]), "accelerators": n} for one, n in places.items()]
    write_atomically(folder / FILE_NAME, json.dumps(report, indent=1) + "\n")
    return report


def _described(node: dict[str, Any]) -> dict[str, Any]:
    labels = {key: value for key, value in node["Labels"].items() if not key.startswith("ray.io/")}
    return {"node": node["NodeID"], "name": node["NodeName"], "address": node["NodeManagerAddress"], "labels": labels}


def landed(first_explorer_rank: int) -> dict[str, dict[str, int]]:
    """Accelerators by node id, by role, of this run's placement groups."""
    found: dict[str, dict[str, int]] = {}
    for identity, entry in ray.util.placement_group_table().items():
        role = _role(entry["name"], first_explorer_rank)
        if role is None or entry["state"] != "CREATED" or not _is_ours(identity, entry["name"]):
            continue
        places = found.setdefault(role, {})
        for node in entry["bundles_to_node_id"].values():
            places[node] = places.get(node, 0) + 1
    return found


def _role(name: str, first_explorer_rank: int) -> str | None:
    pool = name.partition("verl_group_")[0]
    if pool.startswith(STANDALONE) and pool.removeprefix(STANDALONE).partition("_")[0].isdigit():
        rank = int(pool.removeprefix(STANDALONE).partition("_")[0])
        return "explorer" if rank >= first_explorer_rank else "sampler"
    return POOLS.get(pool)


def _is_ours(identity: str, name: str) -> bool:
    """Names are looked up in this job's namespace; other runs of the cluster have the same ones."""
    try:
        return bool(ray.util.get_placement_group(name).id.hex() == identity)
    except ValueError:
        return False
