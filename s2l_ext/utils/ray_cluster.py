"""The Ray cluster of this machine, looked at without Ray."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path

from s2l_ext.errors import ResourceError

CONNECT_SECONDS = 5.0


def ray_folder() -> Path:
    return Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())


def current_cluster() -> str | None:
    """Address of the cluster that `ray start` made on this node, if any: ``ray.init`` without an address joins it."""
    path = ray_folder() / "ray" / "ray_current_cluster"
    try:
        return path.read_text().strip() or None
    except OSError:
        return None


def require_answering(address: str, what: str, fix: str) -> None:
    """Raise ResourceError unless something listens at ``[scheme://]host:port``; other forms are left to Ray.

    Ray itself tries for a minute and longer before it gives up.
    """
    host, _, port = address.rpartition("://")[2].partition("/")[0].rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ResourceError(f"{what} cannot be reached at {address} ({error}). {fix}") from None
