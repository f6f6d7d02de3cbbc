"""Two runs on one machine, each with a Ray cluster of its own, do not read each other's weights."""

import inspect
from types import ModuleType

import pytest

from s2l_ext.platforms.patches.training import name_sockets_by_cluster

pytestmark = pytest.mark.contract


def test_upstream_still_names_sockets_by_the_job_id_alone() -> None:
    import verl.workers.rollout.vllm_rollout.vllm_rollout as rollout

    assert "rl-colocate-zmq-{job_id}-replica-{self.replica_rank}-rank-{local_rank}.sock" in inspect.getsource(rollout)


def test_both_ends_of_one_cluster_agree_and_another_cluster_does_not(monkeypatch, tmp_path) -> None:
    class End:
        def __init__(self, zmq_handle: str, bucket_size_mb: int = 512, use_shm: bool = False) -> None:
            self.zmq_handle, self.use_shm = zmq_handle, use_shm

    module = ModuleType("transfer")
    module.BucketedWeightSender, module.BucketedWeightReceiver = type("S", (End,), {}), type("R", (End,), {})
    name_sockets_by_cluster(module)
    monkeypatch.setenv("RAY_RAYLET_PID", "11")
    handle = f"ipc://{tmp_path / 'a.sock'}"
    sender = module.BucketedWeightSender(handle, use_shm=True)
    receiver = module.BucketedWeightReceiver(zmq_handle=handle)
    monkeypatch.setenv("RAY_RAYLET_PID", "12")
    other = module.BucketedWeightReceiver(handle)
    assert sender.zmq_handle == receiver.zmq_handle != other.zmq_handle
    assert sender.use_shm and not receiver.use_shm
