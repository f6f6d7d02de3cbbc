"""Which node of a cluster may hold which role: the label selectors of ``s2l.placement``, checked before the start."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from omegaconf import DictConfig

from s2l_ext.config import S2LConfig
from s2l_ext.config.modes import mode_of
from s2l_ext.config.placement_checks import Selector, matches, shown
from s2l_ext.config.verl_settings import whole_number
from s2l_ext.errors import ResourceError

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
    """Who needs places: ``count`` times ``size`` accelerators, each time on one node.

    ``key`` begins the settings ``key.nnodes`` and ``key.n_gpus_per_node``; ``selector`` None lets Ray choose.
    """

    name: str
    key: str
    count: int
    size: int
    selector: Selector | None = None

    @property
    def total(self) -> int:
        return self.count * self.size

    def nodes(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that the selector allows."""
        return [node for node in nodes if matches(self.selector, node.labels)]

    def __str__(self) -> str:
        return f"s2l.placement.{self.name}={shown(self.selector)}" if self.selector else f"{self.name}: Ray chooses"


def roles(cfg: DictConfig, s2l: S2LConfig) -> list[Role]:
    """In the order in which they take their places."""
    nnodes, size = whole_number(cfg, "trainer.nnodes"), whole_number(cfg, "trainer.n_gpus_per_node")
    found = [Role("learner", "trainer", nnodes, size, s2l.placement.learner)]
    if mode_of(cfg) == "separate_async":
        key = "actor_rollout_ref.rollout"
        found.append(
            Role("sampler", key, whole_number(cfg, f"{key}.nnodes"), whole_number(cfg, f"{key}.n_gpus_per_node"))
        )
    if s2l.distill and not s2l.distill.in_actor:
        found.append(Role("teacher", "s2l.distill", s2l.distill.nnodes, s2l.distill.n_gpus_per_node))
    if s2l.explorer and s2l.explorer.n_gpus:
        one = s2l.explorer
        found.append(Role("explorer", "s2l.explorer", one.nnodes, one.n_gpus_per_node, s2l.placement.explorer))
    return [role for role in found if role.size > 0]


def check_roles(wanted: Sequence[Role], nodes: Sequence[Node]) -> None:
    """Raise ResourceError, with the selector and what is there, if a role has no room or may lose it to another."""
    for role in wanted:
        if role.selector and not role.nodes(nodes):
            raise ResourceError(
                f"{role}: no node of the cluster has these labels. Nodes: {_labelled(nodes)}. Start one with "
                f"`ray start --labels {_flag(role.selector)}`, or correct the selector."
            )
        _require_room(role, role.nodes(nodes))
    for number, role in enumerate(wanted):
        for other in wanted[:number]:
            _require_left_over(role, other, nodes)


def _require_room(role: Role, allowed: Sequence[Node]) -> None:
    room = sum(node.accelerators // role.size for node in allowed)
    if room < role.count:
        matching = f"The nodes that {role} matches have" if role.selector else "The cluster's nodes have"
        raise ResourceError(
            f"{role.key}.nnodes={role.count} with {role.key}.n_gpus_per_node={role.size}: {role.size} accelerators on "
            f"one node are there {room} time(s). {matching} {counted(allowed)}. Lower {role.key}.n_gpus_per_node and "
            f"raise {role.key}.nnodes, or add nodes."
        )


def _require_left_over(role: Role, earlier: Role, nodes: Sequence[Node]) -> None:
    """Ray knows nothing of who comes later: an earlier role may take the only nodes that a later one can use."""
    if role.selector is None:
        return
    own, shared = role.nodes(nodes), earlier.nodes(role.nodes(nodes))
    taken = min(earlier.total, sum(node.accelerators for node in shared))
    left = sum(node.accelerators for node in own) - taken
    if left < role.total:
        fix = "s2l.placement.learner" if earlier.name == "learner" else f"s2l.placement.{role.name}"
        raise ResourceError(
            f"{role}: {earlier.name} is placed first ({earlier}) and may take {taken} of the accelerators on "
            f"{', '.join(map(str, shared))}; {role.name} needs {role.total} there. Set {fix} so that the two share no "
            "node, or add accelerators."
        )


# ---- shown ----------------------------------------------------------------------------------------------------------


def table(wanted: Sequence[Role], nodes: Sequence[Node]) -> str:
    """A line for each node with the roles that may go there, then a line for each role."""
    rows = [("node", "accelerators", "labels", "may hold")]
    for node in nodes:
        may = [role.name for role in wanted if node.accelerators >= role.size and matches(role.selector, node.labels)]
        rows.append((str(node), str(node.accelerators), _labels(node) or "-", ", ".join(may) or "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    lines = [
        "  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[3]]) for row in rows
    ]
    lines += [f"{role.name}: {role.count} x {role.size} accelerator(s); {_choice(role)}" for role in wanted]
    return "\n".join(f"  {line}" for line in lines)


def _choice(role: Role) -> str:
    return str(role) if role.selector else "Ray chooses the node"


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
