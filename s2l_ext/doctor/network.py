"""Ports, Ray's address, and which of Ray's servers on this machine others can reach. Nothing is sent but a connect, and
to a dashboard that others can reach one request without a token."""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from s2l_ext.doctor.finding import Finding, judged
from s2l_ext.doctor.machine import ray_folder
from s2l_ext.utils.secrets import masked_text

CONNECT_SECONDS = 1.0
REFUSED_WITHOUT_TOKEN = (401, 403)
DASHBOARD, DASHBOARD_PORT = "dashboard.py", 8265
HEAD_PORTS = {6379: "control store", DASHBOARD_PORT: "dashboard", 10001: "client server"}
CONTROL = ("gcs_server", "raylet")
"""Processes that run whatever reaches them, unless Ray's token authentication is on."""
MIN_EPHEMERAL = 5000


@dataclass(frozen=True)
class Listener:
    """A listening TCP port; ``process`` is empty where the owner is not visible. ``token``: it was started with Ray's
    token authentication."""

    host: str
    port: int
    process: str = ""
    token: bool = False

    @property
    def is_open(self) -> bool:
        return not is_loopback(self.host)


def is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host.strip("[]").partition("%")[0])
    except ValueError:
        return host == "localhost"
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def listeners() -> list[Listener]:
    """Every listening TCP port of this machine (network namespace) that this user may see."""
    found = [c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.laddr]
    there = {Listener(c.laddr.ip, c.laddr.port, *_owner(c.pid, c.laddr.port)) for c in found}
    return sorted(there, key=lambda one: (one.port, one.host))


def _owner(pid: int | None, port: int) -> tuple[str, bool]:
    """A process by name, and the mode that Ray sets for what it starts, also where it switched it on by itself."""
    name, mode = "", ""
    with contextlib.suppress(psutil.Error, OSError):
        if pid is not None:
            process = psutil.Process(pid)
            name = DASHBOARD if serves_pages(process.cmdline(), port) else process.name()
            mode = process.environ().get("RAY_AUTH_MODE", "")
    return name, mode.lower() == "token"


def serves_pages(words: Sequence[str], port: int) -> bool:
    """Whether a command line is that of Ray's dashboard with its pages at ``port``; it has a port of metrics too, and
    without pages (``include_dashboard=false``) nothing else."""
    if "--disable-frontend" in words or not any(word.endswith("dashboard.py") for word in words):
        return False
    given = dict(word.partition("=")[::2] for word in words if word.startswith(("--port=", "--port-retries=")))
    first = int(given.get("--port") or DASHBOARD_PORT)
    return first <= port <= first + int(given.get("--port-retries") or 0)


def address() -> list[Finding]:
    """Whether the cluster that runs would join here answers."""
    wanted, source = _address()
    if wanted is None:
        return [Finding("ray", "ok", "no cluster: a run starts its own")]
    fix = f"Start it with `ray start --head`, or take {source} away."
    host, _, port = wanted.rpartition("://")[2].partition("/")[0].rpartition(":")
    value = f"{masked_text(wanted)} (from {source})"
    if not host or not port.isdigit():
        return [Finding("ray", "warn", f"{value}: not looked at", "Ask Ray itself: s2l doctor --ray ADDRESS.")]
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        return [Finding("ray", "fail", f"{value} does not answer ({error})", fix)]
    return [Finding("ray", "ok", f"{value} answers")]


def _address() -> tuple[str | None, str]:
    given = os.environ.get("RAY_ADDRESS", "").strip()
    if given and given not in ("local", "auto"):
        return given, "RAY_ADDRESS"
    path = ray_folder() / "ray" / "ray_current_cluster"
    with contextlib.suppress(OSError):
        return path.read_text().strip() or None, str(path)
    return None, ""


def exposure(found: Sequence[Listener] | None = None) -> list[Finding]:
    """Ray's dashboard, control store and raylet accept jobs from anyone who can reach them."""
    try:
        there = listeners() if found is None else list(found)
    except (psutil.Error, OSError) as error:
        return [Finding("ray dashboard", "warn", f"ports are not visible ({error})", "Ask `ss -tlnp` as root.")]
    return [dashboard(there), _control(there)]


def dashboard(there: Sequence[Listener]) -> Finding:
    """Which dashboards others can reach, and whether each asks for a token."""
    boards = [one for one in there if one.process == DASHBOARD or one.port == DASHBOARD_PORT]
    wide = [one for one in boards if one.is_open]
    asks = all(asks_for_token(one.host, one.port) for one in wide)
    value = ", ".join(f"{one.host}:{one.port}" for one in boards) or "none here"
    open_ = ", open to other machines" + (", asks for a token" if asks else "") if wide else ""
    fix = (
        "Whoever reaches it runs programs as you. `ray start --dashboard-host=127.0.0.1` (Ray's default) or "
        "ray_kwargs.ray_init.include_dashboard=false; look at it through ssh -L; or start Ray with RAY_AUTH_MODE=token "
        "(docs/security.md)."
    )
    return judged("ray dashboard", value + open_, asks, fix, "warn")


def asks_for_token(host: str, port: int) -> bool:
    """Whether a dashboard refuses a client without one; False as well if it gives no answer.

    Who listens at every address answers at loopback.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)  # noqa: S104
    connection = http.client.HTTPConnection(host.strip("[]"), port, timeout=CONNECT_SECONDS)
    try:
        connection.request("GET", "/api/version")
        return connection.getresponse().status in REFUSED_WITHOUT_TOKEN
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _control(there: Sequence[Listener]) -> Finding:
    wide = [one for one in there if one.process in CONTROL and one.is_open]
    bare = [one for one in wide if not one.token]
    fix = "Ray binds these to every address. Use a firewall, or start Ray with RAY_AUTH_MODE=token (docs/security.md)."
    if bare:
        value = f"{_ports(bare)}, open to other machines and without authentication"
        return Finding("ray ports", "warn", value, fix)
    safe = f"{_ports(wide)}, started with RAY_AUTH_MODE=token" if wide else "none open to other machines"
    return Finding("ray ports", "ok", safe)


def _ports(there: Sequence[Listener]) -> str:
    names = sorted({one.process for one in there})
    return ", ".join(f"{name} {'/'.join(str(one.port) for one in there if one.process == name)}" for name in names)


def ports() -> list[Finding]:
    """verl's servers take free ports of the node's own address; `ray start --head` wants three fixed ones."""
    return [_own_address(), _head_ports(), _ephemeral()]


def node_address() -> str:
    """The address that Ray would call this node: of the interface toward the network; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))
            return str(sock.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def _own_address() -> Finding:
    own = node_address()
    failed = [f"{host}: {error}" for host in dict.fromkeys((own, "127.0.0.1")) if (error := _bind_error(host, 0))]
    fix = "verl's servers listen there. Give this user free ports, and the host name an address of this machine."
    return judged("ports", "; ".join(failed) or f"free ones on {own} and 127.0.0.1", not failed, fix)


def _head_ports() -> Finding:
    taken = [f"{port} ({name})" for port, name in HEAD_PORTS.items() if _bind_error("127.0.0.1", port)]
    value = f"taken: {', '.join(taken)}" if taken else "6379, 8265 and 10001 are free"
    fix = "A cluster runs here already, or another program does: `ray start --head --port=N --dashboard-port=N`."
    return judged("head ports", value, not taken, fix, "warn")


def _bind_error(host: str, port: int) -> OSError | None:
    """What is wrong with listening there; port 0 is any free one."""
    try:
        socket.create_server((host, port)).close()
    except OSError as error:
        return error
    return None


def _ephemeral(path: Path = Path("/proc/sys/net/ipv4/ip_local_port_range")) -> Finding:
    try:
        low, high = map(int, path.read_text().split())
    except (OSError, ValueError):
        return Finding("free ports", "ok", "their range is not told here")
    fix = "Every worker takes several: sysctl net.ipv4.ip_local_port_range='32768 60999'."
    return judged("free ports", f"{low} to {high}", high - low >= MIN_EPHEMERAL, fix, "warn")
