"""A stored rollout in the place of a server's answer: what verl's agent loop receives."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from s2l_ext.data.rollout_store import Rollout
from s2l_ext.errors import DataError

pytestmark = [pytest.mark.contract, pytest.mark.slow]

ROLLOUT = Rollout("p1", 3, 99, [5, 6], [7, 8, 9], [-0.1, -0.2, -0.3], False, 1.0, 1.0, "text")


class Learner:
    tokenizer = "the learner's"


def answer(prompt_ids=(5, 6), rollout=ROLLOUT, **params):
    from s2l_ext.rollout.stored import StoredClient

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
