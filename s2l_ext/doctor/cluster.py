"""``s2l doctor --ray ADDRESS``: what every node of a cluster says of itself. The only file here that imports Ray."""

from __future__ import annotations

import http.client
import logging
from dataclasses import replace

from s2l_ext.doctor.finding import Finding, judged
from s2l_ext.doctor.machine import MIN_DISK_GB
from s2l_ext.doctor.network import Listener, dashboard
from s2l_ext.errors import ResourceError
from s2l_ext.launch import cluster as cluster_check
from s2l_ext.launch.cluster import Answer
from s2l_ext.launch.placement import Node
from s2l_ext.utils.ray_cluster import CONNECT_SECONDS, require_answering
from s2l_ext.utils.secrets import masked_text

REFUSED_WITHOUT_TOKEN = (401, 403)
NODE_SECONDS = 300.0
"""Importing verl on a cold network file system takes minutes."""


def findings(address: str) -> list[Finding]:
    """Join the cluster, run one small task on every node, and leave it again."""
    import ray

    name = masked_text(address)
    try:
        require_answering(address, "the Ray cluster", "Start it with `ray start --head`.")
        context = ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ResourceError, RuntimeError, ValueError) as error:
        if cluster_check.lacks_token(error):
            return [Finding("cluster", "fail", f"{name} refuses", f"Ray: {cluster_check.AUTHENTICATE}")]
        reason = masked_text(" ".join(str(error).split())[:200])
        return [Finding("cluster", "fail", f"{name}: {reason}", "Start it with `ray start --head`, with this Ray.")]
    try:
        nodes = cluster_check.alive_nodes("NPU" if ray.cluster_resources().get("NPU") else "GPU")
        here: Answer = cluster_check.probe()()
        answers = cluster_check.ask(nodes, NODE_SECONDS)
        devices = sum(node.accelerators for node in nodes)
        joined = Finding("cluster", "ok", f"{name}: {len(nodes)} node(s), {devices} accelerators")
        board = _dashboard(str(getattr(context, "dashboard_url", None) or ""))
        error, fix = here.get("error"), "pip install -e . in this environment."
        driver = judged("driver", str(error or "registered with verl"), not error, fix)
        return [joined, board, driver, *(each for node, a in answers for each in judge_node(node, a, here))]
    finally:
        ray.shutdown()


def _dashboard(url: str) -> Finding:
    host, _, port = url.rpartition("://")[2].rpartition(":")
    boards = [Listener(host, int(port), token=asks_for_token(host, int(port)))] if port.isdigit() else []
    return replace(dashboard(boards), name="cluster dashboard")


def asks_for_token(host: str, port: int) -> bool:
    """Whether a dashboard refuses a client without one. Ray's mode in this process says nothing of that cluster:
    joining switches it on wherever a token lies on this machine."""
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=CONNECT_SECONDS)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status in REFUSED_WITHOUT_TOKEN
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def judge_node(node: Node, answer: Answer, here: Answer) -> list[Finding]:
    """Versions and registration of one node, as seen from this process, and its disk if it answered."""
    name, wrong = f"node {node.host}", list(cluster_check.faults(answer, here))
    value = "; ".join(what for what, _ in wrong) or "same versions, registered with verl"
    found = [judged(name, value, not wrong, wrong[0][1] if wrong else "")]
    if "disk_gb" in answer:
        left = float(answer["disk_gb"])
        fix = "Free disk space for Ray's files there."
        found.append(judged(f"{name} disk", f"{left:.0f} GB free", left >= MIN_DISK_GB, fix, "warn"))
    return found
