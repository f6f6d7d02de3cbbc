"""Rows that a divergence is taken on: sampled by the teacher, from its own distribution, or a warning says not."""

from __future__ import annotations

import pytest

from s2l_ext.methods.distill.config import DistillConfig
from s2l_ext.methods.distill.rules import check_teacher_rows, stored_row_warnings
from s2l_ext.methods.explorer.config import LiveExplorer

OWN = {"temperature": 1.0, "top_p": 1.0, "top_k": -1}


def warnings(loss: str = "forward_kl", teacher: str | None = "T", model: str = "T", **sampling: float) -> list[str]:
    distill = DistillConfig(teacher_path=teacher, loss=loss)
    return check_teacher_rows(distill, LiveExplorer(model_path=model, schedule="constant", **{**OWN, **sampling}))


def test_the_teachers_own_samples_are_silent() -> None:
    assert warnings() == warnings(top_k=0) == []


def test_default_sampling_is_the_explorers_and_not_the_teachers_distribution() -> None:
    defaults = {"temperature": 0.7, "top_p": 0.95}
    assert warnings(**defaults) == [
        "s2l.explorer samples at temperature 0.7, top-p 0.95: s2l.distill.loss=forward_kl is then no average over the "
        "teacher's own distribution at s2l.distill.temperature=1 (the paper: 1, no truncation). Set "
        "s2l.explorer.temperature=1, top_p=1 and top_k=-1."
    ]
    assert warnings("sft", **defaults) == []


@pytest.mark.parametrize(
    ("sampling", "words"),
    [({"temperature": 2.0}, "temperature 2"), ({"top_p": 0.5}, "top-p 0.5"), ({"top_k": 20}, "top-k 20")],
)
def test_each_of_the_three_is_named_alone(sampling, words) -> None:
    (warning,) = warnings("jsd", **sampling)
    assert warning.startswith(f"s2l.explorer samples at {words}: s2l.distill.loss=jsd is then no average")


def test_a_teacher_that_did_not_sample_is_named_with_the_sampler() -> None:
    assert warnings(model="A") == [
        "s2l.explorer.model_path=A is not s2l.distill.teacher_path=T: s2l.distill.loss=forward_kl compares with one "
        "model on rows that another sampled. Set both alike."
    ]
    assert warnings("sft", model="A") == warnings("sft", teacher=None, model="A") == []


def test_a_store_is_judged_by_its_fingerprint() -> None:
    distill = DistillConfig(teacher_path="/models/Qwen3-8B", loss="forward_kl")
    sampling = {"temperature": 0.7, "top_p": 1.0, "top_k": 0}
    found = stored_row_warnings(distill, {"model_name": "Qwen/Qwen3-4B", "sampling": sampling}, "s2l.explorer.store=S")
    assert found == [
        "s2l.explorer.store=S was sampled at temperature 0.7: s2l.distill.loss=forward_kl is then no average over the "
        "teacher's own distribution at s2l.distill.temperature=1 (the paper: 1, no truncation). Sample again with "
        "`s2l explore --temperature 1 --top-p 1 --top-k 0`.",
        "s2l.explorer.store=S was sampled by Qwen/Qwen3-4B, s2l.distill.teacher_path=/models/Qwen3-8B is another name: "
        "s2l.distill.loss=forward_kl compares with one model on rows that another sampled. Sample again with the "
        "teacher.",
    ]
    own = {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert stored_row_warnings(distill, {"model_name": "Qwen/Qwen3-8B", "sampling": own}, "S") == []


def test_the_rule_reaches_a_composed_run(rules) -> None:
    recipe = rules("sparse_to_dense/stages/warm_up")
    assert recipe.check() == []
    (warning,) = recipe.check(s2l__explorer__temperature=0.7)
    assert warning.startswith("s2l.explorer samples at temperature 0.7: ")
