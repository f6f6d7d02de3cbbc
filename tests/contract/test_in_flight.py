"""Plans of prompts between the draw and the step that trains on them."""

import inspect
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transfer_queue as tq
from omegaconf import OmegaConf
from tensordict import NonTensorData, TensorDict
from verl.trainer.ppo.v1.trainer_base import PPOTrainer
from verl.utils import tensordict_utils as tu

from s2l_ext.errors import S2LError, StateMismatch
from s2l_ext.methods.base import Method
from s2l_ext.methods.explorer.config import LiveExplorer
from s2l_ext.methods.explorer.controller import Explorer
from s2l_ext.methods.explorer.stored_rollouts import StoredDraw, StoredRollouts
from s2l_ext.methods.guidance.config import AdaptiveLength, GuidanceConfig
from s2l_ext.methods.guidance.controller import Guidance
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.batch_fields import GUIDED_FIELD, LENGTH_FIELD, SLOTS_FIELD, STORED_FIELD
from s2l_ext.training.pending_prompts import Draw, PendingPrompts, PromptPlan
from s2l_ext.training.queue import KVBatchMeta, clear_trained_rows, date_prompts, dated_when_sent, waiting_prompts
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.contract


def plans(step: int, *uids: str, **values) -> dict[str, PromptPlan]:
    return {uid: PromptPlan(step, **values) for uid in uids}


@pytest.fixture
def table() -> PendingPrompts:
    """Two batches, drawn at steps 1 and 2."""
    table = PendingPrompts()
    table.add(plans(1, "c", "a", slots=2))
    table.add(plans(2, "b", "d", slots=1))
    return table


def test_a_step_gets_its_prompts_in_the_order_of_the_draws_and_leaves_the_others(table) -> None:
    assert list(table.pop_trained({"b", "a"}, waiting={"c", "d"})) == ["a", "b"]
    assert list(table.pop_trained({"d", "c"}, waiting=set())) == ["c", "d"] and len(table) == 0


def test_what_verl_dropped_is_forgotten_and_counted(table) -> None:
    taken = table.pop_trained({"b"}, waiting={"d"})
    assert len(table) == 1
    assert table.metrics(4, taken) == {
        "s2l/async/staleness_mean": 2.0,
        "s2l/async/staleness_max": 2.0,
        "s2l/async/pending_prompts": 1.0,
        "s2l/async/dropped_prompts": 2.0,
    }
    assert table.metrics(4, table.pop_trained({"d"}, waiting=set()))["s2l/async/dropped_prompts"] == 0


def test_a_synchronous_step_takes_everything_it_drew(table) -> None:
    assert list(table.pop_all()) == ["c", "a", "b", "d"] and len(table) == 0


def test_the_explorer_is_needed_while_a_prompt_with_live_slots_is_under_way(table) -> None:
    table.add(plans(3, "e", slots=0))
    assert table.need_explorer
    table.pop_trained({"a", "b", "c", "d"}, waiting={"e"})
    assert not table.need_explorer
    table.add(plans(3, "f", slots=2, stored=2))
    assert not table.need_explorer, "stored rollouts need no server"


def test_stored_rollouts_are_counted_for_the_prompts_trained_on() -> None:
    taken = plans(1, "a", slots=4, stored=3, reused=1) | plans(2, "b", slots=2, stored=2)
    assert [plan.explorer_rows for plan in taken.values()] == [3, 2]
    assert StoredRollouts.metrics(taken.values()) == {
        "s2l/explorer/stored_rows": 5.0,
        "s2l/explorer/reused_rows": 1.0,
        "s2l/explorer/fallback_rows_exhausted": 1.0,
    }


def test_stored_rollouts_of_a_group_that_verl_filtered_out_are_not_counted() -> None:
    """A synchronous step has its plan all the same."""
    explorer = explorer_of(4)
    explorer.stored = StoredRollouts({})
    rows = StepRows(["a_0_0", "a_4_0"], ["explorer", "learner"], [0, 0], None, [{}, {}])
    planned = plans(1, "a", slots=4, stored=3, reused=1) | plans(1, "b", slots=2, stored=2)
    found = explorer.metrics(Step(1, KVBatchMeta(partition_id="train"), metrics={}, plans=planned, rows=rows))
    assert found == {
        "s2l/explorer/rollouts_per_group": 3.0,
        "s2l/explorer/num_gpus": 0,
        "s2l/explorer/fraction": 0.5,
        "s2l/explorer/stored_rows": 3.0,
        "s2l/explorer/reused_rows": 1.0,
        "s2l/explorer/fallback_rows_exhausted": 1.0,
    }


def test_rows_without_a_plan_are_an_error_unless_nothing_is_on(table) -> None:
    with pytest.raises(StateMismatch, match=r"prompt x \(one of 1\).*write its step into"):
        table.pop_trained({"x", "a"}, waiting=set())
    assert list(table.pop_trained({"x", "a"}, waiting=set(), strict=False)) == ["a"]


def test_state_goes_through_sorted_json_and_keeps_the_order(table) -> None:
    table.add(plans(2, "A", index=7, stored=1, reused=1, guided=2, length=30))
    resumed = PendingPrompts()
    resumed.load_state_dict(json.loads(json.dumps(table.state_dict(), sort_keys=True)))
    assert resumed.pop_all() == table.pop_all()


def test_a_run_whose_prompts_are_all_dropped_ends_with_a_message() -> None:
    table = PendingPrompts(most_draws=4)
    for step in (1, 2):
        table.add(plans(step, f"a{step}", f"b{step}", f"c{step}"))
        table.pop_trained({f"a{step}"}, waiting=set())
    table.add(plans(3, "d", "e", "f"))
    with pytest.raises(S2LError, match="5 prompts were drawn since the last step.*Error in _run_prompt"):
        table.add(plans(3, "g", "h"))


@pytest.mark.parametrize("between", [lambda table: table.pop_all(), lambda table: table.pop_trained({"a", "b"}, set())])
def test_the_limit_itself_may_be_drawn_and_every_step_counts_anew(between) -> None:
    table = PendingPrompts(most_draws=2)
    for step in (1, 2):
        table.add(plans(step, "a", "b"))
        between(table)
    table.add(plans(3, "a", "b"))
    with pytest.raises(S2LError, match="3 prompts were drawn"):
        table.add(plans(3, "c"))


def test_a_prompt_that_is_trained_on_waits_no_longer_even_if_verl_still_lists_it(table) -> None:
    assert list(table.pop_trained({"a"}, waiting={"a", "b", "c", "d"})) == ["a"]
    assert list(table.plans) == ["c", "b", "d"] and table.dropped == 0


def test_prompts_that_verl_sends_again_keep_their_age(table, monkeypatch) -> None:
    """Only what is in the queue is written: a tag of a prompt that is gone would bring it back."""
    put = {}
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {key: {"is_prompt": True} for key in "abx"}})
    monkeypatch.setattr(
        tq, "kv_batch_put", lambda keys, partition_id, tags: put.update(zip(keys, tags, strict=True), on=partition_id)
    )
    date_prompts({uid: plan.step for uid, plan in table.plans.items()}, waiting_prompts())
    assert put == {"a": {"global_steps": 1}, "b": {"global_steps": 2}, "on": "train"}


def test_a_prompt_is_dated_before_any_worker_has_it(monkeypatch) -> None:
    """A tag is read, changed and written whole: the status that a worker writes in between would be lost."""
    said: list[object] = []
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {"a": {"is_prompt": True}}})
    monkeypatch.setattr(tq, "kv_batch_put", lambda keys, partition_id, tags: said.append(tags))
    manager = SimpleNamespace(generate_sequences=said.append)
    trainer = SimpleNamespace(agent_loop_manager=manager)
    with pytest.raises(RuntimeError), dated_when_sent(trainer, {"a": 1}):
        trainer.agent_loop_manager.generate_sequences("batch")
        raise RuntimeError
    assert said == [[{"global_steps": 1}], "batch"] and trainer.agent_loop_manager is manager


def test_rows_that_were_trained_on_before_a_restart_are_cleared(monkeypatch) -> None:
    """verl clears a prompt when a step takes it, and the step's rows after its checkpoint."""
    step = inspect.getsource(PPOTrainer.fit)
    assert step.index("self._save_checkpoint()") < step.index("tq.kv_clear(keys=batch.keys")
    queued = {"a": {"is_prompt": True}, "a_0_0": {}, "b": {"is_prompt": True}, "c_0_0": {}, "c_1_0": {}, "pad1_0_0": {}}
    cleared: list[tuple] = []
    monkeypatch.setattr(tq, "kv_clear", lambda keys, partition_id: cleared.append((keys, partition_id)))
    for found in (queued, {"a": {"is_prompt": True}, "a_0_0": {}}, {}):
        monkeypatch.setattr(tq, "kv_list", lambda partition, found=found: {partition: found})
        clear_trained_rows()
    assert cleared == [(["c_0_0", "c_1_0", "pad1_0_0"], "train")]


def test_queued_prompts_are_told_from_rows(monkeypatch) -> None:
    queued = {"a": {"is_prompt": True, "status": "running"}, "a_0_0": {"status": "success"}, "b": {"is_prompt": True}}
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: queued})
    assert waiting_prompts() == {"a", "b"}
    monkeypatch.setattr(tq, "kv_list", lambda partition: None)
    assert waiting_prompts() == set()


CONFIG = OmegaConf.create({"actor_rollout_ref": {"rollout": {"n": 8}}, "trainer": {"total_epochs": 1}})
"""Groups of eight."""


def half_guided() -> Guidance:
    """Guidance of half of every group by 30 tokens."""
    config = GuidanceConfig(alpha=0.5, length=AdaptiveLength(initial=30))
    guidance = Guidance(config, S2LConfig(guidance=config), CONFIG)
    guidance.start(SimpleNamespace(total_training_steps=10, steps_per_epoch=10, config=CONFIG))
    return guidance


def explorer_of(slots: int) -> Explorer:
    config = LiveExplorer(model_path="m")
    explorer = Explorer(config, S2LConfig(explorer=config), CONFIG)
    explorer.slots = lambda step: slots
    return explorer


def drawn(batch: TensorDict, step: int, *methods: Method) -> dict[str, PromptPlan]:
    """What the trainer makes of the prompts that verl fetched."""
    draw = Draw(batch, step)
    for method in methods:
        method.draw(draw)
    return draw.plans()


def test_a_plan_stands_on_its_row_so_that_verl_keeps_it_with_the_prompt() -> None:
    """verl writes a prompt's columns into its queue, but no value that stands on the whole batch."""
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object), "index": torch.tensor([3, 4])})
    made = drawn(batch, 5, explorer_of(3), half_guided())
    assert made == plans(5, "a", "b", slots=3, guided=4, length=30)
    names = [name for name, value in batch.items() if not isinstance(value, NonTensorData)]
    kept = batch.select(*names)
    for one in (kept, kept[:1], kept.chunk(2)[1], TensorDict.cat([kept, kept])):
        rows = zip(*(list(one[name]) for name in (SLOTS_FIELD, GUIDED_FIELD, LENGTH_FIELD)), strict=True)
        assert set(rows) == {(3, 4, 30)}


def test_without_an_explorer_a_plan_says_nothing_of_it() -> None:
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object)})
    assert drawn(batch, 5, half_guided()) == plans(5, "a", "b", slots=0, guided=4, length=30)
    assert SLOTS_FIELD not in batch and STORED_FIELD not in batch


class Store(StoredRollouts):
    """Has two stored rollouts for the first prompt, one of them again, and none for the second."""

    def __init__(self) -> None:
        self.asked: list[int] = []
        self.left = [StoredDraw([3, 5], num_reused=1), StoredDraw([])]

    def take(self, name: str, count: int) -> StoredDraw:
        self.asked.append(count)
        return self.left.pop(0)


@pytest.mark.parametrize(("slots", "guided"), [(0, 4), (6, 2), (8, 0)])
def test_slots_guided_sessions_and_stored_rollouts_of_a_plan(slots: int, guided: int) -> None:
    """Half of eight sessions are guided, or what the explorer leaves."""
    chats = np.empty(2, dtype=object)
    chats[:] = [[{"role": "user", "content": uid}] for uid in "ab"]
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object), "raw_prompt": chats})
    explorer, store = explorer_of(slots), Store()
    explorer.stored = store
    made = drawn(batch, 5, explorer, half_guided())
    values = {"slots": slots, "guided": guided, "length": 30}
    assert made == plans(5, "a", **values, stored=2, reused=1) | plans(5, "b", **values, stored=0)
    assert store.asked == [slots, slots] and list(batch[SLOTS_FIELD]) == [slots, slots]
    assert list(batch[STORED_FIELD]) == ["3 5", ""]
