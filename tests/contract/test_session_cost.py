"""A session's share of the agent loop: puts that several sessions use, and agent loops made without merging."""

import asyncio
import inspect
from types import SimpleNamespace

import hydra
import pytest
import torch
from transfer_queue.storage.managers.simple_storage_manager import AsyncSimpleStorageManager
from verl.experimental.agent_loop import agent_loop
from verl.trainer.ppo.v1 import agent_loop_tq
from verl.utils.tensordict_utils import list_of_dict_to_tensordict

from s2l_ext.platforms.patches.training import construct_sessions, share_puts
from s2l_ext.training.session_cost import GATHER_SECONDS, MOST_SESSIONS, BatchedPuts, construct

pytestmark = pytest.mark.contract


class Queue:
    """TransferQueue with one slow storage: which keys came in one put, and every row that is there."""

    def __init__(self, broken: str = "") -> None:
        self.puts: list[list[str]] = []
        self.rows: dict[str, dict] = {}
        self.broken = broken

    async def async_kv_batch_put(self, keys, fields, tags, partition_id) -> None:
        await asyncio.sleep(0.04)
        self.puts.append(keys)
        if self.broken in keys:
            raise RuntimeError(f"no room for {self.broken}")
        columns = {
            name: AsyncSimpleStorageManager._select_by_positions(fields[name], range(len(keys)))
            for name in set(fields.keys())
        }
        for number, (key, tag) in enumerate(zip(keys, tags, strict=True)):
            self.rows[key] = {"tag": tag, "partition": partition_id, **{k: v[number] for k, v in columns.items()}}


def row(length: int, **more) -> dict:
    return {"responses": torch.arange(length), "uid": f"of {length}", "extra_fields": {"acc": length}, **more}


def put(queue: BatchedPuts, key: str, fields: dict, partition: str = "train"):
    return queue.async_kv_batch_put(keys=[key], fields=[fields], tags=[{"name": key}], partition_id=partition)


def write(queue: Queue, *rows: tuple[str, dict], partition: str = "train") -> list:
    shared = BatchedPuts(queue, list_of_dict_to_tensordict)

    async def together():
        return await asyncio.gather(*(put(shared, *one, partition) for one in rows), return_exceptions=True)

    return asyncio.run(asyncio.wait_for(together(), 30))


def test_sessions_that_end_together_share_a_put_and_every_row_is_as_it_was() -> None:
    queue = Queue()
    assert write(queue, *((f"p_{length}_0", row(length)) for length in (3, 5, 7))) == [None] * 3
    assert queue.puts == [["p_3_0", "p_5_0", "p_7_0"]]
    for length in (3, 5, 7):
        stored = queue.rows[f"p_{length}_0"]
        assert torch.equal(stored["responses"], torch.arange(length))
        assert stored["extra_fields"] == {"acc": length} and stored["uid"] == f"of {length}"
        assert stored["tag"] == {"name": f"p_{length}_0"} and stored["partition"] == "train"


def test_a_session_that_ends_during_a_put_waits_for_the_next() -> None:
    queue = Queue()
    shared = BatchedPuts(queue, list_of_dict_to_tensordict)

    async def staggered() -> None:
        first = asyncio.create_task(put(shared, "a", row(2)))
        await asyncio.sleep(GATHER_SECONDS + 0.02)
        others = [asyncio.create_task(put(shared, name, row(2))) for name in "bc"]
        await first
        assert set(queue.rows) == {"a"} and not any(task.done() for task in others)
        await asyncio.gather(*others)

    asyncio.run(asyncio.wait_for(staggered(), 30))
    assert queue.puts == [["a"], ["b", "c"]]


def test_a_put_has_a_largest_number_of_sessions() -> None:
    queue = Queue()
    write(queue, *((str(number), row(2)) for number in range(MOST_SESSIONS + 1)))
    assert [len(keys) for keys in queue.puts] == [MOST_SESSIONS, 1] and len(queue.rows) == MOST_SESSIONS + 1


@pytest.mark.parametrize(
    "other",
    [{"turn": 1}, {"responses": torch.ones(2)}, {"responses": torch.ones(2, 3, dtype=torch.int64)}],
    ids=["another column", "another type", "another rank"],
)
def test_rows_of_different_forms_do_not_share_a_put(other: dict) -> None:
    queue = Queue()
    assert write(queue, ("a", row(2)), ("b", row(2) | other), ("c", row(3))) == [None] * 3
    assert queue.puts == [["a", "c"], ["b"]]


def test_a_fault_is_that_sessions_alone() -> None:
    queue = Queue(broken="b")
    results = write(queue, ("a", row(2)), ("b", row(3)), ("c", row(4)))
    assert results[0] is None and results[2] is None and str(results[1]) == "no room for b"
    assert set(queue.rows) == {"a", "c"}


def test_nothing_of_a_session_is_written_after_its_time_limit() -> None:
    queue = Queue()
    shared = BatchedPuts(queue, list_of_dict_to_tensordict)

    async def cancelled() -> None:
        tasks = [asyncio.create_task(put(shared, "a", row(2)))]
        await asyncio.sleep(GATHER_SECONDS + 0.02)
        tasks += [asyncio.create_task(put(shared, name, row(2))) for name in "bc"]
        await asyncio.sleep(0)
        for task in tasks[:2]:
            task.cancel()
        await asyncio.gather(*tasks[:2], return_exceptions=True)
        before = set(queue.rows)
        await tasks[2]
        assert before == {"a"} and set(queue.rows) == {"a", "c"}, "a was on its way, b was not"

    asyncio.run(asyncio.wait_for(cancelled(), 30))


@pytest.fixture
def verls_modules(monkeypatch):
    for module, name in ((agent_loop, "hydra"), (agent_loop_tq, "tq"), (agent_loop_tq, "list_of_dict_to_tensordict")):
        monkeypatch.setattr(module, name, getattr(module, name))


def test_verl_still_writes_every_session_by_itself(verls_modules) -> None:
    source = inspect.getsource(agent_loop_tq)
    assert source.count("list_of_dict_to_tensordict(") == source.count("tq.async_kv_batch_put(") == 1
    assert "fields=list_of_dict_to_tensordict(fields)" in source
    queue, before = agent_loop_tq.tq, agent_loop_tq.list_of_dict_to_tensordict
    share_puts(BatchedPuts)
    share_puts(BatchedPuts)
    assert isinstance(agent_loop_tq.tq, BatchedPuts) and agent_loop_tq.tq._queue is queue
    assert agent_loop_tq.tq._to_tensordict is before
    assert agent_loop_tq.tq.init is queue.init, "everything else is the module's"


def test_verl_still_merges_a_configuration_for_every_session(verls_modules) -> None:
    source = inspect.getsource(agent_loop.AgentLoopWorker._run_agent_loop)
    assert source.count("hydra.utils.instantiate(") == 1 and inspect.getsource(agent_loop).count("hydra.utils.") == 4
    construct_sessions(construct)
    assert agent_loop.hydra.utils.instantiate is construct


class Loop:
    def __init__(self, **arguments) -> None:
        self.arguments = arguments


def test_an_agent_loop_gets_the_very_objects_that_hydra_would_hand_on() -> None:
    config = {"_target_": f"{__name__}.Loop"}
    given = {"server_manager": SimpleNamespace(), "tokenizer": object(), "processor": None, "dataset_cls": Queue}
    hydras = hydra.utils.instantiate(config={"_target_": "types.SimpleNamespace"}, **given)
    ours = construct({"_target_": "types.SimpleNamespace"}, **given)
    assert vars(ours) == vars(hydras) == given and config["_target_"]


def test_a_users_loop_with_settings_of_its_own_is_made_by_hydra() -> None:
    made = construct({"_target_": "types.SimpleNamespace", "name": "mine", "tries": 3}, tools=None)
    assert (made.name, made.tries, made.tools) == ("mine", 3, None)


def test_a_class_that_is_not_there_is_named() -> None:
    with pytest.raises(Exception, match="Nowhere"):
        construct({"_target_": "verl.Nowhere"})
