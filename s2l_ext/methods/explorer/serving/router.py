"""verl's load balancer of the explorer's servers, through which workers and the driver tell each other of failures."""

from __future__ import annotations

from typing import Any

from verl.workers.rollout.router import GlobalRequestLoadBalancer


class ExplorerRouter(GlobalRequestLoadBalancer):
    """Lives in an actor on the driver's node. The one change: a server reported as failed gets no more requests.

    Args:
        policy: ``s2l.explorer.on_failure``; with ``fail`` the first report is the end.
    """

    def __init__(self, servers: dict[str, Any], policy: str, full_determinism: bool = False) -> None:
        super().__init__(servers=servers, full_determinism=full_determinism)
        self._policy = policy
        self._failed_requests = 0
        self._suspects: dict[str, str] = {}
        self._given_up: str | None = None

    def report(self, server: str | None, reason: str) -> None:
        """A request failed; ``server`` is None when none was there to ask."""
        if server is not None:
            self._failed_requests += 1
            self.suspect(server, reason)
        if self._policy == "fail":
            self.give_up(f"{server or 'explorer'}: {reason}")

    def suspect(self, server: str, reason: str) -> None:
        if server in self._servers:
            self._suspects[server] = reason
            self.remove_servers([server])

    def give_up(self, reason: str) -> None:
        """No session waits any longer. The first reason counts."""
        self._given_up = self._given_up or reason

    def add_servers(self, servers: dict[str, Any]) -> None:
        for server in servers:
            self._suspects.pop(server, None)
        super().add_servers(servers)

    def status(self) -> dict[str, Any]:
        """Servers in turn, servers to look at with the reason, failed requests since the start, why it is over."""
        return {
            "up": list(self._servers),
            "suspects": dict(self._suspects),
            "failed_requests": self._failed_requests,
            "given_up": self._given_up,
        }

    def forget(self, server: str) -> None:
        """It is dead: neither in turn nor to be looked at."""
        self._suspects.pop(server, None)
        self.remove_servers([server])
