"""A session that never ends: what verl's replay buffer then says through us, and a time limit that ends it.

verl's buffer, verl's ``_run_prompt`` and our worker are real; the TransferQueue is a table, and what a session does is
a coroutine that waits for an event.
"""

import asyncio
import logging
import re
import threading
import time
from collections import defaultdict
from types import SimpleNamespace

import pytest
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from s2l_ext.methods.registry import parse_s2l
from s2l_ext.platforms.patches.training import watch_sampling
from s2l_ext.training import agent_loop, waiting
from s2l_ext.training.agent_loop import S2LAgentLoopWorker
from s2l_ext.training.batch_fields import SLOTS_FIELD
from s2l_ext.training.waiting import Waiting

pytestmark = pytest.mark.contract


class Table:
    """Tags by partition and key, in place of the TransferQueue's controller."""

    def __init__(self) -> None:
        self.tags = defaultdict(dict)

    def kv_list(self):
        return {partition: {key: dict(tag) for key, tag in rows.items()} for partition, rows in self.tags.items()}

    def kv_clear(self, partition_id, keys):
        for key in keys:
            self.tags[partition_id].pop(key, None)

    async def async_kv_put(self, key, partition_id, tag):
        self.tags[partition_id].setdefault(key, {}).update(tag)


@pytest.fixture
def table(monkeypatch) -> Table:
    rows = Table()
    for name in ("kv_list", "kv_clear", "async_kv_put"):
        monkeypatch.setattr(tq, name, getattr(rows, name))
    return rows


@pytest.fixture
def loop():
    """An event loop in a thread of its own, as an agent-loop worker's."""
    running = asyncio.new_event_loop()
    thread = threading.Thread(target=running.run_forever, daemon=True)
    thread.start()
    yield running
    running.call_soon_threadsafe(running.stop)
    thread.join(5)


@pytest.fixture
def worker(composed, monkeypatch, table):
    """``worker(*settings)``: sessions end at once but for those in ``sampling``, which wait for ``go``."""

    async def _run_agent_loop(self, sampling_params, trajectory, *, session_id, **kwargs):
        if session_id in self.sampling:
            await self.go.wait()
        await self._compute_score(session_id)
        partition = "val" if trajectory["validate"] else "train"
        await tq.async_kv_put(f"{kwargs['uid']}_{session_id}_0", partition, {"status": "success"})

    async def _compute_score(self, session_id):
        return None

    monkeypatch.setattr(agent_loop._WorkerBase, "_run_agent_loop", _run_agent_loop)
    monkeypatch.setattr(agent_loop._WorkerBase, "_compute_score", _compute_score)

    def make(*settings: str, recipe: str = "s2l_po/toy", sampling=()):
        made = S2LAgentLoopWorker.__new__(S2LAgentLoopWorker)
        made.config = composed(recipe, "actor_rollout_ref.rollout.n=4", *settings)
        made.s2l, made._store = parse_s2l(made.config.s2l), None
        explorer = SimpleNamespace()
        explorer.for_session = lambda: explorer
        made.llm_client = SimpleNamespace(explorer=explorer)
        made.sampling, made.go = sampling, asyncio.Event()
        made.background_tasks = set()
        return made

    return make


def buffer(poll: float = 0.01) -> ReplayBuffer:
    settings = {"max_off_policy_threshold": 1, "max_off_policy_strategy": "drop", "sampler_kwargs": {}}
    return ReplayBuffer("sync", OmegaConf.create({}), poll_interval=poll, **settings)


def start(worker, loop, table, slots: int = 0, validate: bool = False) -> None:
    """Have the group of prompt ``p`` sampled; ``slots`` sessions are the explorer's."""
    table.tags["val" if validate else "train"]["p"] = {"is_prompt": True, "global_steps": 1, "status": "pending"}
    prompt = {"uid": "p", SLOTS_FIELD: slots}

    async def begin():
        worker.background_tasks.add(asyncio.create_task(worker._run_prompt(prompt, {}, {"validate": validate})))

    asyncio.run_coroutine_threadsafe(begin(), loop).result(5)


def until(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_step_that_waits_says_so_less_and_less_often(worker, loop, table, caplog) -> None:
    """61 s a look: lines at 61, 122 and 244 s. At 305 s the sessions end, and the batch is verl's."""
    made, looks = worker(sampling={0, 2}), iter([0.0, 0.0, 61.0, 122.0, 183.0, 244.0])

    def now() -> float:
        seconds = next(looks, None)
        if seconds is None:
            loop.call_soon_threadsafe(made.go.set)
        return 305.0 if seconds is None else seconds

    start(made, loop, table, slots=1)
    rows, watch = buffer(), Waiting(None, now)
    watch_sampling(rows, watch.begin, watch.look, lambda: None)
    with caplog.at_level(logging.WARNING, logger=waiting.__name__):
        batch, _ = rows.sample(global_steps=1, partition_id="train", batch_size=1)
    assert sorted(batch.keys) == ["p_0_0", "p_1_0", "p_2_0", "p_3_0"]
    lines = [re.sub(r"\d\d:\d\d:\d\d", "CLOCK", record.getMessage()) for record in caplog.records]
    assert lines == [
        f"s2l: the step has waited {seconds} s (since CLOCK) for 1 unfinished prompts. `ray stack` on a node shows "
        "what its processes do. s2l.rollout.session_timeout_s would end a learner's session."
        for seconds in (61, 122, 244)
    ]


def test_each_wait_begins_anew(caplog) -> None:
    seconds = iter([0.0, 0.0, 59.9, 60.0, 100.0, 159.9, 160.0])
    watch = Waiting(limit_s=5.0, now=lambda: next(seconds))
    with caplog.at_level(logging.WARNING, logger=waiting.__name__):
        watch.begin()
        watch.look(7, "val")
        watch.look(7, "val")
        watch.begin()
        watch.look(7, "train")
        watch.look(7, "train")
    lines = [re.sub(r"\d\d:\d\d:\d\d", "CLOCK", record.getMessage()) for record in caplog.records]
    assert lines == [
        f"s2l: the {what} has waited 60 s (since CLOCK) for 7 unfinished prompts. `ray stack` on a node shows what its "
        "processes do."
        for what in ("validation", "step")
    ]


def test_a_validation_is_told_of_no_limit_that_it_does_not_have(caplog) -> None:
    watch = Waiting(now=iter([0.0, 0.0, 60.0, 120.0]).__next__)
    with caplog.at_level(logging.WARNING, logger=waiting.__name__):
        watch.begin()
        watch.look(7, "val")
        watch.look(7, "train")
    said = [record.getMessage().endswith(" would end a learner's session.") for record in caplog.records]
    assert said == [False, True]


def test_an_error_of_the_session_is_not_taken_for_the_limit(worker, loop, table, caplog, monkeypatch) -> None:
    """A tool or a reward may raise TimeoutError too."""

    async def fails(self, session_id):
        raise TimeoutError("the judge's socket")

    made = worker("s2l.rollout.session_timeout_s=1000")
    monkeypatch.setattr(agent_loop._WorkerBase, "_compute_score", fails)
    start(made, loop, table)
    until(lambda: table.tags["train"]["p"]["status"] == "failure")
    failed = [record for record in caplog.records if "Error in _run_prompt" in record.getMessage()]
    assert {str(record.exc_info[1]) for record in failed} == {"the judge's socket"}


@pytest.mark.parametrize("recipe", ["s2l_po/toy", "grpo/toy"])
def test_a_session_over_the_limit_fails_and_its_group_goes_on_without_it(worker, loop, table, caplog, recipe) -> None:
    made = worker("s2l.rollout.session_timeout_s=0.2", recipe=recipe, sampling={2})
    start(made, loop, table)
    batch, _ = buffer().sample(global_steps=1, partition_id="train", batch_size=1)
    assert sorted(batch.keys) == ["p_0_0", "p_1_0", "p_3_0"]
    (failed,) = [record for record in caplog.records if "Error in _run_prompt" in record.getMessage()]
    assert str(failed.exc_info[1]) == "session 2 of prompt p took longer than s2l.rollout.session_timeout_s=0.2"


def test_a_validation_and_an_explorers_session_have_no_limit_of_the_learners(worker, loop, table) -> None:
    """A validation without a row would say something else; the explorer has limits of its own."""
    made = worker("s2l.rollout.session_timeout_s=0.1", sampling={0, 1})
    start(made, loop, table, slots=2)
    start(made, loop, table, validate=True)
    time.sleep(0.5)
    assert table.tags["train"]["p"]["status"] == table.tags["val"]["p"]["status"] == "running"
    loop.call_soon_threadsafe(made.go.set)
    until(lambda: table.tags["train"]["p"]["status"] == table.tags["val"]["p"]["status"] == "finished")
    assert {"p_0_0", "p_1_0"} <= table.tags["train"].keys() and "p_0_0" in table.tags["val"]
