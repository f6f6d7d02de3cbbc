"""Which node of a cluster may hold which role: the label selectors of ``s2l.placement``, checked before the start."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from omegaconf import DictConfig, OmegaConf

from s2l_ext.config.modes import mode_of
from s2l_ext.config.verl_settings import setting, whole_number
from s2l_ext.errors import ResourceError
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.placement_rules import Selector, format_selector, matches

SHOWN_NODES = 8


@dataclass(frozen=True)
class Node:
    """One alive node: Ray's id, its name or address, the accelerators that Ray counts there, and its labels."""

    id: str
    host: str
    accelerators: int
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.host} ({self.id[:8]})"


@dataclass(frozen=True)
class Role:
    """Who needs places: ``count`` times ``size`` accelerators.

    ``key`` begins the settings ``key.nnodes`` and ``key.n_gpus_per_node``; ``selector`` None lets Ray choose.
    ``engine`` is the accelerators of one server of several, which verl places one by one; None: ``size`` together.
    """

    name: str
    key: str
    count: int
    size: int
    selector: Selector | None = None
    engine: int | None = None

    @property
    def together(self) -> int:
        """Accelerators that Ray has to find on one node."""
        return min(self.size, self.engine or self.size)

    @property
    def groups(self) -> int:
        """How often: verl starts as many whole servers as fit."""
        engine = self.engine or self.size
        return self.count * self.size // engine * (engine // self.together)

    def nodes(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that the selector allows."""
        return [node for node in nodes if matches(self.selector, node.labels)]

    def __str__(self) -> str:
        if not self.selector:
            return "Ray chooses the node"
        return f"s2l.placement.{self.name}={format_selector(self.selector)}"


def roles(cfg: DictConfig, s2l: S2LConfig) -> list[Role]:
    """In the order in which they take their places."""
    found = [_role(cfg, "learner", "trainer", s2l.placement.learner)]
    if setting(cfg, "reward.reward_model.enable") and setting(cfg, "reward.reward_model.enable_resource_pool"):
        found.append(_role(cfg, "reward model", "reward.reward_model"))
    if s2l.distill and not s2l.distill.in_actor:
        found.append(Role("teacher", "s2l.distill", s2l.distill.nnodes, s2l.distill.n_gpus_per_node))
    elif setting(cfg, "distillation.enabled") and not s2l.distill:
        found.append(_role(cfg, "verl's teacher", "distillation"))
    if mode_of(cfg) == "separate_async":
        key = "actor_rollout_ref.rollout"
        found.append(_role(cfg, "sampler", key, engine=_engine(OmegaConf.select(cfg, key))))
    one = s2l.live_explorer
    if one and one.n_gpus:
        engine = _engine(one.rollout_overrides | {"tensor_model_parallel_size": one.tensor_model_parallel_size})
        where = s2l.placement.explorer
        found.append(Role("explorer", "s2l.explorer", one.nnodes, one.n_gpus_per_node, where, engine))
    return [role for role in found if role.size > 0]


def _role(cfg: DictConfig, name: str, key: str, selector: Selector | None = None, engine: int | None = None) -> Role:
    nnodes, size = whole_number(cfg, f"{key}.nnodes"), whole_number(cfg, f"{key}.n_gpus_per_node")
    return Role(name, key, nnodes, size, selector, engine)


def _engine(rollout: Mapping[str, Any]) -> int:
    """Accelerators of one server of verl's."""
    parts = ("tensor_model_parallel_size", "data_parallel_size", "pipeline_model_parallel_size")
    return math.prod(int(rollout.get(part) or 1) for part in parts)


def check_roles(wanted: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Raise ResourceError, with the selector and what is there, if a role does not fit on the nodes that it may use.

    What roles take from each other is left to Ray, and to the time limit of every placement group.
    """
    for role in wanted:
        if role.selector and not role.nodes(nodes):
            raise ResourceError(
                f"{role}: no node of the cluster has these labels. Nodes: {_labelled(nodes)}. Start one with "
                f"`ray start --labels {_flag(role.selector)}`, or correct the selector."
            )
        _require_room(role, role.nodes(nodes))


def _require_room(role: Role, allowed: Sequence[Node]) -> None:
    room = sum(node.accelerators // role.together for node in allowed)
    if room < role.groups:
        matching = f"The nodes that {role} matches have" if role.selector else "The cluster's nodes have"
        raise ResourceError(
            f"{role.key}.nnodes={role.count} with {role.key}.n_gpus_per_node={role.size}: {role.groups} x "
            f"{role.together} accelerators are needed, each set on one node, but only {room} fit. {matching} "
            f"{counted(allowed)}. Lower {role.key}.n_gpus_per_node and raise {role.key}.nnodes, or add nodes."
        )


def table(wanted: Sequence[Role], nodes: Sequence[Node]) -> str:
    """A line for each node with the roles that may go there, then a line for each role."""
    rows = [("node", "accelerators", "labels", "may hold")]
    for node in nodes:
        may = [
            role.name for role in wanted if node.accelerators >= role.together and matches(role.selector, node.labels)
        ]
        rows.append((str(node), str(node.accelerators), _labels(node) or "-", ", ".join(may) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    lines += [f"{role.name}: {role.count} x {role.size} accelerator(s); {role}" for role in wanted]
    return "\n".join(f"  {line}" for line in lines)


def counted(nodes: Sequence[Node]) -> str:
    """Accelerators by node, or how many nodes have how many."""
    if len(nodes) <= SHOWN_NODES:
        return ", ".join(f"{node.accelerators} ({node.host})" for node in nodes)
    counts = Counter(node.accelerators for node in nodes)
    return ", ".join(f"{size} ({count} nodes)" for size, count in sorted(counts.items(), reverse=True))


def _labelled(nodes: Sequence[Node]) -> str:
    more = f" and {len(nodes) - SHOWN_NODES} more" if len(nodes) > SHOWN_NODES else ""
    return "; ".join(f"{node}: {_labels(node) or 'no labels'}" for node in nodes[:SHOWN_NODES]) + more


def _labels(node: Node) -> str:
    """Without those that Ray gives every node."""
    return ", ".join(f"{key}={value}" for key, value in sorted(node.labels.items()) if not key.startswith("ray.io/"))


def _flag(selector: Selector) -> str:
    return ",".join(f"{key}={'VALUE' if value[0] in '!' or '(' in value else value}" for key, value in selector.items())
