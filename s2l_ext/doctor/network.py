"""Ray's address, and which of Ray's servers on this machine others can reach. Nothing is sent but a connect."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from s2l_ext.doctor.finding import Finding, judged
from s2l_ext.errors import ResourceError
from s2l_ext.utils.ray_cluster import current_cluster, require_answering
from s2l_ext.utils.secrets import masked_text

DASHBOARD_PORTS = range(8265, 8316)
"""Ray's default, and the 50 that it tries after it."""
CONTROL = ("gcs_server", "raylet")
"""Processes that run whatever reaches them, unless Ray's token authentication is on."""


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
    there = {Listener(c.laddr.ip, c.laddr.port, *_owner(c.pid)) for c in found}
    return sorted(there, key=lambda one: (one.port, one.host))


def _owner(pid: int | None) -> tuple[str, bool]:
    """A process by name, and the mode that Ray sets for what it starts, also where it switched it on by itself."""
    name, mode = "", ""
    with contextlib.suppress(psutil.Error, OSError):
        if pid is not None:
            process = psutil.Process(pid)
            name = process.name()
            mode = process.environ().get("RAY_AUTH_MODE", "")
    return name, mode.lower() == "token"


def address() -> list[Finding]:
    """Whether the cluster that runs would join here answers."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    wanted = current_cluster() if given in ("", "local", "auto") else given
    if wanted is None:
        return [Finding("ray", "ok", "no cluster: a run starts its own")]
    try:
        require_answering(wanted, "the Ray cluster", "")
    except ResourceError as error:
        fix = "Start it with `ray start --head`, or unset RAY_ADDRESS, or end that cluster with `ray stop`."
        return [Finding("ray", "fail", masked_text(str(error).strip()), fix)]
    return [Finding("ray", "ok", f"a run joins {masked_text(wanted)}")]


def exposure(found: Sequence[Listener] | None = None) -> list[Finding]:
    """Ray's dashboard, control store and raylet accept jobs from anyone who can reach them."""
    try:
        there = listeners() if found is None else list(found)
    except (psutil.Error, OSError) as error:
        return [Finding("ray dashboard", "warn", f"ports are not visible ({error})", "Ask `ss -tlnp` as root.")]
    return [dashboard([one for one in there if one.port in DASHBOARD_PORTS]), _control(there)]


def dashboard(boards: Sequence[Listener]) -> Finding:
    """Which dashboards others can reach, and whether each was started with a token."""
    wide = [one for one in boards if one.is_open]
    asks = all(one.token for one in wide)
    value = ", ".join(f"{one.host}:{one.port}" for one in boards) or "none here"
    open_ = ", open to other machines" + (", RAY_AUTH_MODE=token" if asks else "") if wide else ""
    fix = (
        "Whoever reaches it runs programs as you. `ray start --dashboard-host=127.0.0.1` (Ray's default) or "
        "ray_kwargs.ray_init.include_dashboard=false; look at it through ssh -L; or start Ray with RAY_AUTH_MODE=token "
        "(docs/security.md)."
    )
    return judged("ray dashboard", value + open_, asks, fix, "warn")


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
