"""Accuracies of groups that verl's own buffers drop, by hand; the TransferQueue is a table of tags and rows."""

import numpy as np
import pytest
import transfer_queue as tq
from omegaconf import OmegaConf
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer, ReplayBufferAsync

from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.batch_fields import PREFIX_FIELD, SOURCE_FIELD
from s2l_ext.training.dropped_groups import DroppedGroups
from s2l_ext.training.outcomes import batch_accuracy

pytestmark = pytest.mark.contract

GROUPS = {"right": [1.0, 1.0], "mixed": [1.0, 0.0], "later": [0.0, 1.0], "old": [0.0, 0.0], "failed": [0.0]}
DRAWN = {"right": 5, "mixed": 4, "later": 5, "old": 1, "failed": 5}
"""Accuracies of each prompt's sessions, and the step that drew it. Step 5 samples one prompt."""


@pytest.fixture
def asked() -> list[list[str]]:
    """Columns of every read."""
    return []


@pytest.fixture
def table(monkeypatch, asked):
    """The queue with the named prompts' groups finished."""
    tags: dict[str, dict] = {}

    def fill(*uids: str):
        for uid in uids:
            status = "failure" if uid == "failed" else "finished"
            tags[uid] = {"is_prompt": True, "global_steps": DRAWN[uid], "status": status}
            tags.update({f"{uid}_{number}_0": {"status": "success"} for number in range(len(GROUPS[uid]))})

    def get(keys, partition_id, select_fields):
        accs = [GROUPS[key.split("_")[0]][int(key.split("_")[1])] for key in keys]
        column = np.empty(len(keys), dtype=object)
        column[:] = [{"reward_extra_info": {"acc": acc, "score": acc}} for acc in accs]
        found = {"extra_fields": column, SOURCE_FIELD: ["learner"] * len(keys), PREFIX_FIELD: [0] * len(keys)}
        asked.append(select_fields)
        return {name: found[name] for name in select_fields}

    monkeypatch.setattr(tq, "kv_list", lambda: {"train": {key: dict(tag) for key, tag in tags.items()}})
    monkeypatch.setattr(tq, "kv_batch_get", get)
    monkeypatch.setattr(tq, "kv_clear", lambda partition_id, keys: [tags.pop(key, None) for key in keys])
    return fill


@pytest.fixture
def filtered(composed, table):
    """``filtered(kind, *uids)`` -> (uids of the batch, sessions counted beside it, metrics)."""

    def sample(kind, *uids: str, recipe: str = "expo/toy", settings: tuple[str, ...] = ()):
        table(*uids)
        cfg = composed(recipe, "s2l.curriculum=null", "algorithm.filter_groups.enable=true", *settings)
        sizes = {"train_batch_size": 1, "gen_batch_size": 1} if kind is ReplayBuffer else {}
        buffer = kind(
            "sync" if kind is ReplayBuffer else "colocate_async",
            OmegaConf.create({}),
            max_off_policy_threshold=2,
            max_off_policy_strategy="drop",
            sampler_kwargs={},
            poll_interval=0.01,
            refill_fn=lambda count: None,
            filter_groups_metric="acc",
            **sizes,
        )
        evicted, metrics = DroppedGroups(parse_s2l(cfg.s2l)), {}
        evicted.watch(buffer, cfg)
        batch, _ = buffer.sample(global_steps=5, partition_id="train", batch_size=1)
        return {key.split("_")[0] for key in batch.keys}, evicted.take(metrics), metrics, evicted

    return sample


@pytest.mark.parametrize(
    ("recipe", "settings"),
    [
        ("expo/toy", ()),
        ("expo/toy", ("s2l.kl.type=constant",)),
        ("g2rpo_a/toy", ("s2l.guidance.missing_trace=skip_guidance",)),
        (
            "g2rpo_a/toy",
            ("s2l.guidance.missing_trace=skip_guidance", "s2l.guidance.length={type: constant, initial: 8}"),
        ),
    ],
    ids=["kl", "constant kl", "guidance", "constant guidance"],
)
def test_dropped_groups_count_as_what_they_were(filtered, asked, recipe, settings) -> None:
    """Right 1 1, mixed 1 0 and the surplus 0 1: 4 of 6, and not the 1 of 2 that the step trains on."""
    trained, counted, metrics, evicted = filtered(
        ReplayBuffer, "right", "mixed", "later", recipe=recipe, settings=settings
    )
    assert trained == {"mixed"}
    assert sorted((session.uid, session.acc) for session in counted) == [
        ("later", 0.0),
        ("later", 1.0),
        ("right", 1.0),
        ("right", 1.0),
    ]
    assert metrics == {"s2l/filter/rows_counted": 4.0}
    every = sum(session.acc for session in counted) + sum(GROUPS["mixed"])
    assert every / 6 == pytest.approx(4 / 6) and batch_accuracy(counted, "test") == 0.75
    assert evicted.take(metrics := {}) == [] and metrics == {}, "each once"
    own = [] if recipe == "expo/toy" else [SOURCE_FIELD, PREFIX_FIELD]  # rows of guided groups say who sampled them
    assert asked == [["extra_fields"], *[["extra_fields", *own]] * (len(asked) - 1)] and len(asked) > 1, "verl's first"


def test_what_is_too_old_or_failed_is_not_counted(filtered) -> None:
    """Drawn at step 1 with a threshold of 2 at step 5: another policy's. A failed group has no verdict on all rows."""
    trained, counted, _, _ = filtered(ReplayBufferAsync, "right", "mixed", "old", "failed")
    assert trained == {"mixed"}
    assert [(session.uid, session.acc) for session in counted] == [("right", 1.0), ("right", 1.0)]


@pytest.mark.parametrize(
    "settings",
    [
        ("s2l.kl=null",),
        ("s2l.kl=null", "s2l.distill={loss: sft, correct_only: true}"),
        ("algorithm.filter_groups.enable=false",),
        ("+trainer.v1.sampler.custom_sampler.name=Mine",),
    ],
    ids=["nobody asks", "each row is judged by itself", "nothing is dropped", "not verl's buffer"],
)
def test_otherwise_the_buffer_is_verls(filtered, settings) -> None:
    settings = tuple(word.lstrip("+") for word in settings)
    assert filtered(ReplayBuffer, "right", "mixed", settings=settings)[1] == []
