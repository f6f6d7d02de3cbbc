"""GPUs and models that a start does not need: of an explorer that will sample no more, of a teacher without a loss."""

from __future__ import annotations

from pathlib import Path

import pytest

from s2l_ext.errors import ResourceError
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.needed import TRACKER_FILE, needed_now, only_validates, steps_done
from s2l_ext.training.preflight import check_pool, gpus_needed

RECIPE = "s2l_po/qwen3_1.7b_to_8b"


@pytest.fixture
def resumed(configured, tmp_path: Path):
    """The recipe at the end of a step, beside what of its block the next start needs."""

    def at(done: int, recipe: str = RECIPE, **settings: object):
        (tmp_path / TRACKER_FILE).write_text(str(done))
        cfg = configured(recipe, trainer__default_local_dir=str(tmp_path), **settings)
        return cfg, needed_now(cfg, parse_s2l(cfg.s2l))

    return at


@pytest.mark.parametrize(("done", "runs"), [(0, True), (6, True), (7, False), (15, False)])
def test_the_explorer_is_needed_up_to_the_step_before_its_share_is_zero(resumed, done: int, runs: bool) -> None:
    """``mix_steps`` is 8: step 7 has its last sessions, so a checkpoint of step 7 needs it no more."""
    cfg, block = resumed(done)
    assert cfg.s2l.explorer.mix_steps == 8 and steps_done(cfg) == done
    assert (block.explorer is not None) == runs


def test_a_run_past_its_explorer_resumes_on_the_learners_gpus(resumed) -> None:
    cfg, block = resumed(8)
    assert gpus_needed(cfg, block) == {"learner": 4}
    check_pool(cfg, block, available=4)
    with pytest.raises(ResourceError) as refused:
        check_pool(cfg, parse_s2l(cfg.s2l), available=4)
    assert str(refused.value) == (
        "the run needs 8 GPUs = 4 (learner) + 4 (explorer), but 4 are available. Lower trainer.n_gpus_per_node or "
        "s2l.explorer.n_gpus_per_node, or start on more GPUs."
    )


@pytest.mark.slow
@pytest.mark.parametrize(("threshold", "done", "runs"), [(3, 8, True), (3, 9, False), (8, 13, True), (8, 14, False)])
def test_an_asynchronous_queue_may_hold_older_plans(resumed, threshold: int, done: int, runs: bool) -> None:
    """A prompt of step 7 may be trained on ``threshold - 1`` steps later: at step 9 with 3, at step 14 with 8."""
    settings = {"trainer__v1__trainer_mode": "colocate_async"}
    _, block = resumed(done, **settings, trainer__v1__sampler__max_off_policy_threshold=threshold)
    assert (block.explorer is not None) == runs


@pytest.mark.slow
def test_a_constant_share_needs_it_to_the_end(resumed) -> None:
    assert resumed(99, "sparse_to_dense/stages/warm_up")[1].explorer is not None


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["sparse_to_dense/stages/warm_up", "sparse_to_dense/stages/opd"])
def test_a_validation_alone_needs_neither_explorer_nor_teacher(resumed, recipe: str) -> None:
    cfg, block = resumed(0, recipe, trainer__val_only=True)
    assert only_validates(cfg) and block.explorer is block.distill is None
    assert gpus_needed(cfg, block) == {"learner": 1}
    cfg, block = resumed(0, recipe, trainer__val_only=True, trainer__val_before_train=False)
    assert not only_validates(cfg) and block.distill is not None


@pytest.mark.slow
def test_stored_rollouts_stay_what_they_were(resumed) -> None:
    cfg, block = resumed(15, "s2l_po/toy_offline")
    assert block == parse_s2l(cfg.s2l) and block.offline_explorer is not None
