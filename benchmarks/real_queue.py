"""A real TransferQueue for one process: its controller and two storage units as plain processes, without Ray."""

from __future__ import annotations

import base64
import pickle
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from typing import Any

UNITS = 2


@contextmanager
def real_queue() -> Iterator[None]:
    """``transfer_queue``'s functions reach it inside the block."""
    from omegaconf import OmegaConf
    from transfer_queue import interface

    parts, pipe = ["controller", *["storage"] * UNITS], subprocess.PIPE
    started = [subprocess.Popen([sys.executable, __file__, part], stdout=pipe, stdin=pipe, text=True) for part in parts]
    conf = OmegaConf.create({}, flags={"allow_objects": True})
    conf = OmegaConf.merge(conf, OmegaConf.load(str(resources.files("transfer_queue") / "config.yaml")))
    try:
        controller, *units = [pickle.loads(base64.b64decode(one.stdout.readline())) for one in started]  # noqa: S301 - its own children
        conf.controller.zmq_info = controller
        conf.backend.SimpleStorage.zmq_info = {f"TransferQueueStorageUnit#{n}": unit for n, unit in enumerate(units)}
        interface._maybe_create_tq_client(conf)
        yield
    finally:
        for process in started:
            process.kill()


def serve(part: str) -> None:
    import ray
    from transfer_queue.controller import TransferQueueController
    from transfer_queue.storage.simple_storage import SimpleStorageUnit

    ray.util.get_node_ip_address = lambda: "127.0.0.1"
    actor: Any = TransferQueueController if part == "controller" else SimpleStorageUnit
    plain = actor.__ray_metadata__.modified_class
    served = plain() if part == "controller" else plain(config={"ssd_offload": {"enabled": False}, "_run_id": "run"})
    print(base64.b64encode(pickle.dumps(served.get_zmq_server_info())).decode(), flush=True)
    sys.stdin.read()  # until the parent ends


if __name__ == "__main__":
    serve(sys.argv[1])
