"""A stored rollout in the place of a server's answer: what verl's agent loop receives."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from s2l_ext.errors import DataError
from s2l_ext.store.reader import Rollout

pytestmark = [pytest.mark.contract, pytest.mark.slow]

ROLLOUT = Rollout("p1", 3, 99, [5, 6], [7, 8, 9], [-0.1, -0.2, -0.3], False, 1.0, 1.0, "text")


class Learner:
    tokenizer = "the learner's"


def answer(prompt_ids=(5, 6), rollout=ROLLOUT, **params):
    from s2l_ext.methods.explorer.serving.stored_client import StoredClient

    client = StoredClient(Learner(), rollout, step=4)
    return client, asyncio.run(client.generate("r", prompt_ids=list(prompt_ids), sampling_params=params, priority=1))


def test_tokens_log_probs_and_the_weight_version_of_a_live_row() -> None:
    client, output = answer(logprobs=True, temperature=1.0)
    assert (output.token_ids, output.log_probs, output.stop_reason) == ([7, 8, 9], [-0.1, -0.2, -0.3], "completed")
    assert output.extra_fields == {"global_steps": 4, "min_global_steps": 4, "max_global_steps": 4}
    assert client.tokenizer == "the learner's"


def test_log_probs_only_when_verl_records_them() -> None:
    assert answer(logprobs=False)[1].log_probs is None


def test_a_rollout_longer_than_the_budget_is_cut_as_sampling_would_have_been() -> None:
    _, output = answer(logprobs=True, max_tokens=2)
    assert (output.token_ids, output.log_probs, output.stop_reason) == ([7, 8], [-0.1, -0.2], "length")


@pytest.mark.parametrize(
    ("budget", "was_cut", "reason"), [(3, False, "completed"), (4, True, "length"), (2, 0, "length")]
)
def test_a_rollout_is_complete_unless_it_was_cut_or_is_cut_now(budget: int, was_cut: bool, reason: str) -> None:
    rollout = dataclasses.replace(ROLLOUT, truncated=bool(was_cut))
    assert answer(rollout=rollout, max_tokens=budget)[1].stop_reason == reason


def test_another_prompt_is_refused() -> None:
    with pytest.raises(DataError, match=r"prompt p1: this run's prompt has 3 tokens, the stored .* 2 other ones"):
        answer(prompt_ids=(5, 6, 1))


def test_a_second_turn_is_refused() -> None:
    client, _ = answer()
    with pytest.raises(DataError, match="second turn"):
        asyncio.run(client.generate("r", prompt_ids=[5, 6], sampling_params={}))


@pytest.mark.parametrize("columns", [["raw_prompt", "extra_info"], ["raw_prompt"]])
def test_every_row_takes_rollouts_of_its_own_prompt_and_a_resumed_run_takes_others(columns) -> None:
    """Of two prompts, one has three rollouts and one has two; each step takes two or what is left."""
    from verl.utils import tensordict_utils as tu

    from s2l_ext.data.prompts import prompt_id
    from s2l_ext.methods.explorer.stored_rollouts import StoredRollouts
    from s2l_ext.training.batch_fields import STORED_FIELD
    from s2l_ext.training.pending_prompts import Draw

    chats = [[{"role": "user", "content": text}] for text in ("1+1=?", "2+2=?")]
    extras = [{"index": 4}, {"index": 9}] if "extra_info" in columns else [None, None]
    names = [prompt_id(chat, extra) for chat, extra in zip(chats, extras, strict=True)]
    stored = dict(zip(names, (3, 2), strict=True))

    def step(rollouts) -> tuple[list[list[str]], list[int]]:
        rows = {name: {"raw_prompt": chats, "extra_info": extras}[name] for name in columns}
        draw = Draw(tu.get_tensordict(rows | {"uid": ["a", "b"]}), 1)
        draw.slots = 2
        rollouts.draw(draw)
        sent = [text.split() for text in draw.batch[STORED_FIELD]]
        counts = [draw.plans()[uid].stored for uid in ("a", "b")]
        assert counts == [len(one) for one in sent]
        return sent, counts

    first = StoredRollouts(stored, "learner", seed=3)
    one, counts = step(first)
    assert counts == [2, 2] and one[1] == ["0", "1"]
    resumed = StoredRollouts(stored, "learner", seed=3)
    resumed.load_state_dict(first.state_dict())
    two, counts = step(resumed)
    assert counts == [1, 0] and sorted(one[0] + two[0]) == ["0", "1", "2"]
