"""``s2l.explorer.source=offline``: what it needs, what it would ignore, and stores that do not fit."""

from __future__ import annotations

import pytest

from s2l_ext.compose import compose_config
from s2l_ext.config import parse_s2l
from s2l_ext.config.checks import check_against_verl
from s2l_ext.config.plan import build_plan, render
from s2l_ext.config.schema import ExplorerConfig
from s2l_ext.data.store_checks import check_counts
from s2l_ext.errors import ConfigError, DataError
from s2l_ext.preflight import gpus_needed

OFFLINE = ["s2l.explorer.source=offline", "s2l.explorer.model_path=null", "s2l.explorer.store=outputs/store"]


def checked(*overrides: str):
    cfg = compose_config("s2l_po/toy", list(overrides))
    s2l = parse_s2l(cfg.s2l)
    return cfg, s2l, check_against_verl(s2l, cfg)


def test_stored_rollouts_need_no_gpu_and_the_plan_says_where_they_come_from():
    cfg, s2l, _ = checked(*OFFLINE, "s2l.explorer.too_few=reuse")
    assert gpus_needed(cfg, s2l) == {"learner": 1}
    text = render(build_plan(cfg, s2l, "s2l_po/toy", "cpu"))
    assert "rollouts stored in outputs/store (too few: reuse), no GPU" in text
    assert "8 7 6 5 4 3 2 0" in text


@pytest.mark.parametrize(
    "override, named",
    [
        ("s2l.explorer.model_path=some/model", "model_path=some/model would be ignored"),
        ("s2l.explorer.temperature=1.0", "temperature=1.0 would be ignored"),
        ("s2l.explorer.top_p=1.0", "top_p=1.0 would be ignored"),
        ("s2l.explorer.top_k=5", "top_k=5 would be ignored"),
        ("s2l.explorer.nnodes=2", "nnodes=2 would be ignored"),
        ("s2l.explorer.n_gpus_per_node=2", "n_gpus_per_node=2 would be ignored"),
        ("s2l.explorer.tensor_model_parallel_size=2", "tensor_model_parallel_size=2 would be ignored"),
        ("+s2l.explorer.rollout_overrides.max_num_seqs=4", "rollout_overrides=.* would be ignored"),
        ("s2l.explorer.store=null", "s2l.explorer.store, which is not set"),
    ],
)
def test_what_stored_rollouts_would_ignore_or_miss_is_refused(override, named):
    with pytest.raises(ConfigError, match=named):
        checked(*OFFLINE, override)


@pytest.mark.parametrize("override", ["s2l.explorer.store=outputs/store", "s2l.explorer.too_few=reuse"])
def test_a_live_explorer_refuses_what_only_a_store_reads(override):
    with pytest.raises(ConfigError, match="would be ignored with s2l.explorer.source=live"):
        checked(override)


def test_a_live_explorer_needs_its_model():
    with pytest.raises(ConfigError, match=r"s2l\.explorer\.model_path is missing"):
        parse_s2l({"explorer": {}})


# ---- does the store have what the run's prompts need ---------------------------------------------------------------


def counted(counts, ids, too_few="error", most=4):
    return check_counts(counts, ids, ExplorerConfig(source="offline", store="DIR", too_few=too_few), most)


def test_enough_rollouts_of_every_prompt_pass_in_silence():
    assert counted({"a": 4, "b": 9, "unused": 1}, ["a", "b"]) == []


@pytest.mark.parametrize("too_few", ["error", "reuse", "learner"])
def test_a_store_of_another_prompt_set_is_refused(too_few):
    with pytest.raises(DataError, match=r"DIR holds 1 prompts and none of the 2 of data.train_files \(a, b\)"):
        counted({"x": 9}, ["a", "b"], too_few)


def test_prompts_that_the_store_lacks():
    for too_few in ("error", "reuse"):
        with pytest.raises(DataError, match=r"no rollout of 1 of 2 prompts \(b\).*--only-missing"):
            counted({"a": 4}, ["a", "b"], too_few)
    (warning,) = counted({"a": 4}, ["a", "b"], "learner")
    assert "fewer than 4 rollouts of 1 of 2 prompts; the learner samples the rest" in warning


def test_prompts_with_fewer_rollouts_than_a_group_takes():
    with pytest.raises(DataError, match=r"fewer than the 4 rollouts .* of 1 of 2 prompts \(b: 3\).*--n 4"):
        counted({"a": 4, "b": 3}, ["a", "b"])
    assert counted({"a": 4, "b": 3}, ["a", "b"], "reuse") == []
