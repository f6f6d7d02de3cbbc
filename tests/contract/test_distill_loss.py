"""What the distillation worker hands to its engine and its teacher, and its loss by verl's aggregations, computed by
hand: two rows of 1 and 3 tokens, of the second row the middle one is masked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tensordict import TensorDict
from transfer_queue import KVBatchMeta
from verl.utils import tensordict_utils as tu

from s2l_ext.errors import DataError
from s2l_ext.methods.distill import advantages, worker
from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.distill.controller import Distill
from s2l_ext.methods.distill.worker import DistillActorWorker, DistillLoss, build_teacher, response_tokens
from s2l_ext.methods.registry import S2LConfig
from s2l_ext.training.actor_worker import S2LActorWorker
from s2l_ext.training.step import Step, StepRows

pytestmark = pytest.mark.contract

RESPONSES, MASKS, VALUES = [[5], [6, 7, 8]], [[1], [1, 0, 1]], [2.0, 3.0, 7.0]


def nested(rows: list) -> torch.Tensor:
    return torch.nested.as_nested_tensor([torch.tensor(row) for row in rows], layout=torch.jagged)


@pytest.mark.parametrize(
    ("mode", "factor", "loss"),
    [
        ("token-mean", None, 12 / 6 * 2),
        ("token-sum", None, 12 * 2),
        ("seq-mean-token-sum", None, (2 + 10) / 5 * 2),
        ("seq-mean-token-mean", None, (2 + 5) / 5 * 2),
        ("seq-mean-token-sum-norm", 8, (2 + 10) / 5 * 2 / 8),
    ],
)
def test_the_loss_is_over_the_tokens_and_rows_of_all_workers(mode, factor, loss) -> None:
    """6 tokens in 5 rows on 2 workers; this one has 3 of the tokens in 2 of the rows."""
    fields = {"input_ids": nested([[4, 4, 5], [4, 6, 7, 8]]), "responses": nested(RESPONSES)}
    data = TensorDict(fields | {"response_mask": nested(MASKS)}, batch_size=2)
    tokens = response_tokens(data)
    tu.assign_non_tensor(data, dp_size=2, batch_num_tokens=6, global_batch_size=5)
    numbers = torch.tensor(VALUES)[:, None].repeat(1, 1 + len(worker.REPORTED))
    found, metrics = DistillLoss(mode, factor)({"token_numbers": numbers, "tokens": tokens}, data)
    assert found.item() == pytest.approx(loss, rel=1e-6)
    sums = {name.rpartition("/")[2]: metric.values for name, metric in metrics.items()}
    assert (float(sums["value"][0]), float(sums["tokens"][0])) == (12.0, 3.0)


@pytest.mark.parametrize(("path", "loss"), [("some/teacher", "reverse_kl"), (None, "sft")])
def test_a_worker_trains_on_this_loss_with_the_actors_aggregation(monkeypatch, composed, path, loss) -> None:
    actor = "actor_rollout_ref.actor"
    config = composed("grpo/toy", f"{actor}.loss_agg_mode=seq-mean-token-sum-norm", f"{actor}.loss_scale_factor=8")
    distill = DistillConfig(path, loss, temperature=2.0)
    Distill(distill, S2LConfig(distill=distill), config).adapt()
    losses, built = [], []
    monkeypatch.setattr(S2LActorWorker, "init_model", lambda self: None)
    monkeypatch.setattr(worker, "build_teacher", lambda config, path: built.append((config, path)) or "the teacher")
    own = DistillActorWorker.__new__(DistillActorWorker)
    own.config = config.actor_rollout_ref
    own.actor = SimpleNamespace(engine=SimpleNamespace(), set_loss_fn=losses.append)
    own.init_model()
    (found,) = losses
    assert isinstance(found, DistillLoss) and found.has_teacher is bool(path)
    assert (found.loss_agg_mode, found.loss_scale_factor) == ("seq-mean-token-sum-norm", 8)
    assert own.actor.engine.distill == DistillConfig(path, loss, temperature=2.0)
    assert own.actor.engine.teacher == ("the teacher" if path else None)
    assert built == ([(own.config, path)] if path else [])


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
def test_a_teacher_has_the_actors_layout_and_keeps_nothing_for_gradients(monkeypatch, composed, packed, tmp_path):
    from s2l_ext.toy.models import ModelSize, build_model
    from s2l_ext.toy.tokenizer import build_tokenizer

    build_model(ModelSize(32, 1), 0).save_pretrained(tmp_path)
    build_tokenizer().save_pretrained(tmp_path)
    settings = [f"use_remove_padding={packed}", "enable_gradient_checkpointing=true", f"path={tmp_path}"]
    config = composed("grpo/toy", *(f"actor_rollout_ref.model.{one}" for one in settings)).actor_rollout_ref
    made = []
    monkeypatch.setattr(worker.TeacherEngine, "__init__", lambda self, *args: made.append(args))
    monkeypatch.setattr(worker.TeacherEngine, "initialize", lambda self: made.append("initialized"))
    build_teacher(config, str(tmp_path))
    (model, engine, optimizer, _), after = made
    assert model.enable_gradient_checkpointing is False and config.model.enable_gradient_checkpointing is True
    assert (engine.use_remove_padding, engine.forward_only, engine.strategy) == (packed, True, "fsdp2")
    assert optimizer is None and after == "initialized"


# ---- the driver -----------------------------------------------------------------------------------------------------


def test_advantages_and_returns_are_nought_for_verls_metrics(queue) -> None:
    queue.rows = {"a": {"response_mask": [1, 0, 1]}, "b": {"response_mask": [1, 1]}}
    advantages.zero_advantages(queue.batch())
    for name in ("advantages", "returns"):
        assert queue.column(name) == [[0.0, 0.0, 0.0], [0.0, 0.0]]


def test_a_row_of_padding_is_not_counted_as_kept(queue) -> None:
    """Padding is a copy of a row, so that a right one would count twice."""
    verdicts = {"a_0_0": 1.0, "b_0_0": 0.0, "pad_0_0": 1.0}
    queue.rows = {
        key: {"response_mask": [1, 1], "extra_fields": {"reward_extra_info": {"acc": acc, "score": acc}}}
        for key, acc in verdicts.items()
    }
    batch = queue.batch(padding=("pad_0_0",))
    counts = advantages.leave_out_wrong(Step(1, batch, {}, {}, StepRows.of(batch, False, False)))
    assert counts == {"s2l/distill/rows_kept": 1.0, "s2l/distill/rows": 2.0}
    assert queue.column("response_mask") == [[1, 1], [0, 0], [1, 1]]
    assert queue.rows["b_0_0"]["loss_mask"] == [0, 0]


@pytest.mark.parametrize(
    ("said", "words"),
    [({}, "gave a row no 'acc'"), ({"acc": 0.9}, "gave a row no 'acc'"), ({"acc": 2.0, "score": 2.0}, r"acc=2\.0: it")],
    ids=["nothing", "a bare reward, which verl calls acc", "no share"],
)
def test_correct_only_without_a_verdict_is_an_error(said: dict, words: str) -> None:
    rows = StepRows(["a_0_0"], ["learner"], [0], None, [{"reward_extra_info": said}])
    with pytest.raises(DataError, match=words):
        advantages.leave_out_wrong(Step(1, KVBatchMeta(), {}, {}, rows))
