"""What this machine and environment can run, how safe it is, and what to do about it."""

from __future__ import annotations

from collections.abc import Callable

from s2l_ext.doctor import machine, network, packages
from s2l_ext.doctor.finding import Finding

LOOKS: tuple[Callable[[], list[Finding]], ...] = (
    packages.versions,
    packages.registration,
    machine.platform,
    machine.accelerators,
    machine.memory,
    machine.disks,
    machine.shared_memory,
    machine.sandbox,
    network.address,
    network.exposure,
)


def look(ray_address: str | None = None) -> list[Finding]:
    """Everything about this machine and, with an address, about every node of that cluster."""
    findings = [finding for look_at in LOOKS for finding in look_at()]
    if ray_address:
        from s2l_ext.doctor import cluster

        findings += cluster.findings(ray_address)
    return findings
