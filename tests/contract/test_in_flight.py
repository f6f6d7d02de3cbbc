"""Plans of prompts between the draw and the step that trains on them."""

import json

import numpy as np
import pytest
import torch
import transfer_queue as tq
from tensordict import NonTensorData, TensorDict
from verl.utils import tensordict_utils as tu

from s2l_ext.errors import S2LError, StateMismatch
from s2l_ext.methods.explorer.stored_controller import StepRollouts
from s2l_ext.methods.explorer.stored_draws import Taken
from s2l_ext.methods.guidance.config import GuidanceConfig, GuidanceLengthConfig
from s2l_ext.methods.guidance.controller import StepGuidance
from s2l_ext.training.batch_fields import GUIDED_FIELD, LENGTH_FIELD, SLOTS_FIELD
from s2l_ext.training.pending_prompts import InFlight, PromptPlan, keep_ages, waiting_prompts
from s2l_ext.training.planning import make_plans

pytestmark = pytest.mark.contract


def plans(step: int, *uids: str, **values) -> dict[str, PromptPlan]:
    return {uid: PromptPlan(step, **values) for uid in uids}


@pytest.fixture
def table() -> InFlight:
    """Two batches, drawn at steps 1 and 2."""
    table = InFlight()
    table.add(plans(1, "c", "a", slots=2))
    table.add(plans(2, "b", "d", slots=1))
    return table


def test_a_step_gets_its_prompts_in_the_order_of_the_draws_and_leaves_the_others(table) -> None:
    assert list(table.take({"b", "a"}, waiting={"c", "d"})) == ["a", "b"]
    assert list(table.take({"d", "c"}, waiting=set())) == ["c", "d"] and len(table) == 0


def test_what_verl_dropped_is_forgotten_and_counted(table) -> None:
    taken = table.take({"b"}, waiting={"d"})
    assert len(table) == 1
    assert table.metrics(4, taken) == {
        "s2l/plan/lag_mean": 2.0,
        "s2l/plan/lag_max": 2.0,
        "s2l/plan/in_flight": 1.0,
        "s2l/plan/evicted": 2.0,
    }
    assert table.metrics(4, table.take({"d"}, waiting=set()))["s2l/plan/evicted"] == 0


def test_a_synchronous_step_takes_everything_it_drew(table) -> None:
    assert list(table.take_all()) == ["c", "a", "b", "d"] and len(table) == 0


def test_the_explorer_is_needed_while_a_prompt_with_live_slots_is_under_way(table) -> None:
    table.add(plans(3, "e", slots=0))
    assert table.need_explorer
    table.take({"a", "b", "c", "d"}, waiting={"e"})
    assert not table.need_explorer
    table.add(plans(3, "f", slots=2, stored=2))
    assert not table.need_explorer, "stored rollouts need no server"


def test_stored_rollouts_are_counted_for_the_prompts_trained_on() -> None:
    taken = plans(1, "a", slots=4, stored=3, reused=1) | plans(2, "b", slots=2, stored=2)
    assert [plan.explorer_rows for plan in taken.values()] == [3, 2]
    assert StepRollouts.metrics(taken.values()) == {
        "s2l/explorer/stored_rows": 5.0,
        "s2l/explorer/reused_rows": 1.0,
        "s2l/explorer/handed_to_learner": 1.0,
    }


def test_rows_without_a_plan_are_an_error_unless_nothing_is_on(table) -> None:
    with pytest.raises(StateMismatch, match=r"prompt x \(one of 1\).*resume_from_path"):
        table.take({"x", "a"}, waiting=set())
    assert list(table.take({"x", "a"}, waiting=set(), strict=False)) == ["a"]


def test_state_goes_through_sorted_json_and_keeps_the_order(table) -> None:
    table.add(plans(2, "A", index=7, stored=1, reused=1, guided=2, length=30))
    resumed = InFlight()
    resumed.load_state_dict(json.loads(json.dumps(table.state_dict(), sort_keys=True)))
    assert resumed.take_all() == table.take_all()


def test_a_run_whose_prompts_are_all_dropped_ends_with_a_message() -> None:
    table = InFlight(most_draws=4)
    for step in (1, 2):
        table.add(plans(step, f"a{step}", f"b{step}", f"c{step}"))
        table.take({f"a{step}"}, waiting=set())
    table.add(plans(3, "d", "e", "f"))
    with pytest.raises(S2LError, match="5 prompts were drawn since the last step.*Error in _run_prompt"):
        table.add(plans(3, "g", "h"))


@pytest.mark.parametrize("between", [lambda table: table.take_all(), lambda table: table.take({"a", "b"}, set())])
def test_the_limit_itself_may_be_drawn_and_every_step_counts_anew(between) -> None:
    table = InFlight(most_draws=2)
    for step in (1, 2):
        table.add(plans(step, "a", "b"))
        between(table)
    table.add(plans(3, "a", "b"))
    with pytest.raises(S2LError, match="3 prompts were drawn"):
        table.add(plans(3, "c"))


def test_a_prompt_that_is_trained_on_waits_no_longer_even_if_verl_still_lists_it(table) -> None:
    assert list(table.take({"a"}, waiting={"a", "b", "c", "d"})) == ["a"]
    assert list(table.plans) == ["c", "b", "d"] and table.evicted == 0


def test_prompts_that_verl_sends_again_keep_their_age(table, monkeypatch) -> None:
    """Only what is in the queue is written: a tag of a prompt that is gone would bring it back."""
    put = {}
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: {key: {"is_prompt": True} for key in "abx"}})
    monkeypatch.setattr(
        tq, "kv_batch_put", lambda keys, partition_id, tags: put.update(zip(keys, tags, strict=True), on=partition_id)
    )
    keep_ages(table)
    assert put == {"a": {"global_steps": 1}, "b": {"global_steps": 2}, "on": "train"}


def test_queued_prompts_are_told_from_rows(monkeypatch) -> None:
    queued = {"a": {"is_prompt": True, "status": "running"}, "a_0_0": {"status": "success"}, "b": {"is_prompt": True}}
    monkeypatch.setattr(tq, "kv_list", lambda partition: {partition: queued})
    assert waiting_prompts() == {"a", "b"}
    monkeypatch.setattr(tq, "kv_list", lambda partition: None)
    assert waiting_prompts() == set()


def test_a_plan_stands_on_its_row_so_that_verl_keeps_it_with_the_prompt() -> None:
    """verl writes a prompt's columns into its queue, but no value that stands on the whole batch."""
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object), "index": torch.tensor([3, 4])})
    guidance = StepGuidance(GuidanceConfig(alpha=0.5, length=GuidanceLengthConfig(initial=30)), 8, 10)
    made = make_plans(batch, 5, 3, guidance, stored=None, prompts=None)
    assert made == plans(5, "a", "b", slots=3, guided=4, length=30)
    names = [name for name, value in batch.items() if not isinstance(value, NonTensorData)]
    kept = batch.select(*names)
    for one in (kept, kept[:1], kept.chunk(2)[1], TensorDict.cat([kept, kept])):
        rows = zip(*(list(one[name]) for name in (SLOTS_FIELD, GUIDED_FIELD, LENGTH_FIELD)), strict=True)
        assert set(rows) == {(3, 4, 30)}


class Stored:
    """Draws two stored rollouts for ``a``, one of them again, and none for ``b``."""

    def send(self, batch, slots: int):
        self.slots = slots
        return [Taken([3, 5], again=1), Taken([])]


@pytest.mark.parametrize(("slots", "planned", "guided"), [(None, 0, 4), (6, 6, 2), (8, 8, 0)])
def test_slots_guided_sessions_and_stored_rollouts_of_a_plan(slots, planned: int, guided: int) -> None:
    """Half of eight sessions are guided, or what the explorer leaves; without an explorer nothing is said of it."""
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object)})
    guidance = StepGuidance(GuidanceConfig(alpha=0.5, length=GuidanceLengthConfig(initial=30)), 8, 10)
    stored = Stored()
    made = make_plans(batch, 5, slots, guidance, stored, prompts=None)
    values = {"slots": planned, "guided": guided, "length": 30}
    assert made == plans(5, "a", **values, stored=2, reused=1) | plans(5, "b", **values, stored=0)
    assert stored.slots == planned and (SLOTS_FIELD in batch) == (slots is not None)


def test_without_guidance_no_session_is_planned_to_be_guided() -> None:
    batch = tu.get_tensordict({"uid": np.array(["a", "b"], dtype=object), "index": torch.tensor([3, 4])})
    assert make_plans(batch, 5, 3, None, stored=None, prompts=None) == plans(5, "a", "b", slots=3, guided=0, length=0)
    assert GUIDED_FIELD not in batch and LENGTH_FIELD not in batch
