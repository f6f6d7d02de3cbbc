"""``s2l doctor --ray ADDRESS``: what every node of a cluster says of itself. The only file here that imports Ray."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s2l_ext.doctor.finding import Finding, judged
from s2l_ext.doctor.machine import MIN_DISK_GB
from s2l_ext.doctor.network import asks_for_token, is_loopback
from s2l_ext.errors import ResourceError
from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch.cluster import Answer
from s2l_ext.launch.placement import Node
from s2l_ext.utils.secrets import masked_text

NODE_SECONDS = 300.0
"""Importing verl on a cold network file system takes minutes."""
FIX = "The cluster's own log says more; `ray status` lists its nodes (examples/ray_submit)."


def findings(address: str) -> list[Finding]:
    """Join the cluster, run one small task on every node, and leave it again."""
    import ray

    name = masked_text(address)
    try:
        cluster_check.require_answering(address, "the Ray cluster", "Start it with `ray start --head`.")
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ResourceError, RuntimeError, ValueError) as error:
        if cluster_check.lacks_token(error):
            return [Finding("cluster", "fail", f"{name} refuses", f"Ray: {cluster_check.AUTHENTICATE}")]
        reason = masked_text(" ".join(str(error).split())[:200])
        return [Finding("cluster", "fail", f"{name}: {reason}", "Start it with `ray start --head`, with this Ray.")]
    try:
        nodes = cluster_check.alive_nodes(accelerator(ray.cluster_resources()))
        here: Answer = cluster_check.probe()()
        answers = ask(nodes)
        devices = sum(node.accelerators for node in nodes)
        joined = Finding("cluster", "ok", f"{name}: {len(nodes)} node(s), {devices} accelerators")
        board = _dashboard(str(getattr(context, "dashboard_url", None) or ""))
        return [joined, board, _driver(here), *(each for node, a in answers for each in judge_node(node, a, here))]
    finally:
        ray.shutdown()


def accelerator(resources: Mapping[str, float]) -> str:
    """What Ray calls the cluster's accelerators."""
    return "NPU" if resources.get("NPU") else "GPU"


def _dashboard(url: str) -> Finding:
    host, _, port = url.rpartition("://")[2].rpartition(":")
    fix = (
        "Whoever reaches it runs programs on the cluster: --dashboard-host=127.0.0.1 on the head, RAY_AUTH_MODE=token "
        "where Ray starts, or a firewall."
    )
    if not url or is_loopback(host):
        return Finding("cluster dashboard", "ok", url or "none")
    asks = port.isdigit() and asks_for_token(host, int(port))
    return judged("cluster dashboard", f"{url}, asks for a token" if asks else url, asks, fix, "warn")


def _driver(here: Answer) -> Finding:
    error = here.get("error")
    return judged("driver", str(error or "registered with verl"), not error, "pip install -e . in this environment.")


def ask(nodes: Sequence[Node], seconds: float = NODE_SECONDS) -> list[tuple[Node, Answer]]:
    """What every node says of itself; ``silent`` where one does not answer."""
    return cluster_check.ask(nodes, seconds, look(cluster_check.probe()), failed="silent")


def look(versions: Callable[[], Answer]) -> Callable[[], Answer]:
    """What runs on a node. Nested, so that it travels by value: the node may lack this package."""

    def both() -> dict[str, Any]:
        import shutil
        import tempfile

        found = dict(versions())
        found["disk_gb"] = shutil.disk_usage(tempfile.gettempdir()).free / 1e9
        return found

    return both


def judge_node(node: Node, answer: Answer, here: Answer) -> list[Finding]:
    """Versions, registration and disk of one node, as seen from this process."""
    name = f"node {node.host}"
    if "silent" in answer:
        return [Finding(name, "fail", str(answer["silent"]), FIX)]
    if answer.get("s2l_ext") is None:
        fix = "Install it in the environment of that node's Ray (one image for all nodes)."
        return [Finding(name, "fail", f"s2l_ext cannot be imported there ({answer.get('error')})", fix)]
    other = [
        f"{each} {answer[each]} (here {here.get(each)})"
        for each in cluster_check.COMPARED
        if answer.get(each) is not None and here.get(each) is not None and answer[each] != here[each]
    ]
    if answer.get("code") != here.get("code"):
        other.append("other code of s2l_ext")
    same = judged(name, ", ".join(other) or "same versions", not other, "Install the same on every node, or one image.")
    error = answer.get("error")
    told = judged(f"{name} plugin", str(error or "registered with verl"), not error, "pip install -e . there.")
    left = float(answer.get("disk_gb", 0.0))
    disk = judged(
        f"{name} disk", f"{left:.0f} GB free", left >= MIN_DISK_GB, "Make room for Ray's files there.", "warn"
    )
    return [same, told, disk]
