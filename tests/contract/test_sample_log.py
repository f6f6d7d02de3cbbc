"""``samples.jsonl``: what a person reads of a step, with a stand-in for the queue's one read."""

import pytest
import torch
import transfer_queue as tq
from tensordict import NonTensorData, NonTensorStack, TensorDict
from transfer_queue import KVBatchMeta

from s2l_ext.training.sample_log import sample_rows, shortened

pytestmark = pytest.mark.contract

ROWS = {
    "a_10_0": ([1, 2], [7, 8, 9], 1.0, 1, "learner", 2),
    "a_2_0": ([1, 2], [7], 0.0, None, "explorer", 0),
    "b_0_0": ([3], [4], 1.0, 1, "learner", 0),
}


def said(score: float, acc: float | None) -> dict:
    """Of a reward function, by verl: it calls a bare number ``acc``."""
    return {"acc": score} if acc is None else {"acc": acc, "score": score}


class Letters:
    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return "".join(chr(ord("a") + i) for i in ids)


@pytest.fixture
def batch(monkeypatch) -> KVBatchMeta:
    def get(keys, partition_id, select_fields):
        rows = [ROWS[key] for key in keys]

        def nested(values):
            return torch.nested.as_nested_tensor([torch.tensor(v) for v in values], layout=torch.jagged)

        def stack(values):
            return NonTensorStack(*[NonTensorData(value) for value in values])

        every = {
            "prompts": nested([row[0] for row in rows]),
            "responses": nested([row[1] for row in rows]),
            "rm_scores": nested([[0.0] * (len(row[1]) - 1) + [row[2]] for row in rows]),
            "extra_fields": stack([{"reward_extra_info": said(row[2], row[3])} for row in rows]),
            "reward_model": stack([{"ground_truth": "42"} for _ in rows]),
            "s2l_source": stack([row[4] for row in rows]),
            "s2l_prefix_len": torch.tensor([row[5] for row in rows]),
        }
        return TensorDict({name: every[name] for name in select_fields}, batch_size=[len(rows)])

    monkeypatch.setattr(tq, "kv_batch_get", get)
    return KVBatchMeta(partition_id="train", keys=list(ROWS), tags=[{}] * len(ROWS))


def test_a_whole_group_in_the_order_of_its_sessions(batch) -> None:
    first, second = sample_rows(batch, ["a"], Letters(), with_sources=True, with_prefix=True)
    assert (first["session"], first["source"], first["guidance"], first["response"]) == (2, "explorer", "", "h")
    assert (second["session"], second["source"], second["guidance"], second["response"]) == (10, "learner", "hi", "j")
    assert (second["prompt"], second["score"], second["acc"], second["ground_truth"]) == ("bc", 1.0, 1.0, "42")
    assert first["acc"] is None and first["score"] == 0.0


def test_with_every_feature_off_all_rows_are_the_learners(batch) -> None:
    rows = sample_rows(batch, ["b", "a"], Letters(), with_sources=False, with_prefix=False)
    assert [(row["uid"], row["source"], row["guidance"]) for row in rows] == [
        ("a", "learner", ""),
        ("a", "learner", ""),
        ("b", "learner", ""),
    ]
    assert sample_rows(batch, ["gone"], Letters(), False, False) == []


def test_a_group_that_was_filtered_out_takes_no_other_groups_place(batch) -> None:
    rows = sample_rows(batch, ["gone", "b", "a"], Letters(), with_sources=True, with_prefix=True, most=1)
    assert [row["uid"] for row in rows] == ["b"]


def test_a_long_text_keeps_both_ends_and_says_what_is_left_out() -> None:
    text = "a" * 50 + "b" * 50
    assert shortened(text, 100) == text
    assert shortened(text, 20) == f"{'a' * 10}\n[... 80 characters ...]\n{'b' * 10}"
