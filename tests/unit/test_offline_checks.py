"""``s2l.explorer.source=offline``: what it needs, what it would ignore, and stores that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq
import pytest

from s2l_ext.data.prompts import prompt_id
from s2l_ext.data.tokenizers import digest, snapshot, token_digest
from s2l_ext.errors import ConfigError, DataError, TokenizerMismatch
from s2l_ext.launch.compose import compose_config
from s2l_ext.launch.plan_summary import build_plan, render
from s2l_ext.methods.explorer.config import OfflineExplorer
from s2l_ext.methods.explorer.inputs import check_counts, check_store, run_out_warnings
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.store.reader import Manifest, Rollout
from s2l_ext.store.shards import write_manifest, write_shard
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tokenizer import build_tokenizer
from s2l_ext.toy.world import write_files
from s2l_ext.training import controller_state as state
from s2l_ext.training.preflight import gpus_needed
from s2l_ext.training.rules import check_against_verl

pytestmark = pytest.mark.slow

OFFLINE = ["s2l.explorer.source=offline", "~s2l.explorer.model_path", "s2l.explorer.store=outputs/store"]


def checked(*overrides: str):
    cfg = compose_config("s2l_po/toy", list(overrides))
    s2l = parse_s2l(cfg.s2l)
    return cfg, s2l, check_against_verl(s2l, cfg)


def test_stored_rollouts_need_no_gpu_and_the_plan_says_where_they_come_from():
    cfg, s2l, _ = checked(*OFFLINE, "s2l.explorer.on_exhausted=reuse")
    assert gpus_needed(cfg, s2l) == {"learner": 1}
    text = render(build_plan(cfg, s2l, "s2l_po/toy", "cpu"))
    assert "rollouts stored in outputs/store (on_exhausted=reuse), no GPU" in text
    assert "8 7 6 5 4 3 2 0" in text


@pytest.mark.parametrize(
    "override",
    [
        "s2l.explorer.model_path=some/model",
        "s2l.explorer.temperature=0.7",
        "s2l.explorer.top_p=1.0",
        "s2l.explorer.top_k=5",
        "s2l.explorer.nnodes=2",
        "s2l.explorer.n_gpus_per_node=2",
        "s2l.explorer.tensor_model_parallel_size=2",
        "s2l.explorer.rollout_overrides={max_num_seqs: 4}",
    ],
)
def test_what_servers_alone_read_is_refused_with_a_store(override):
    key = override.partition("=")[0]
    with pytest.raises(ConfigError, match=f"{key}: source=offline does not have this key, source=live does"):
        checked(*OFFLINE, override)


def test_stored_rollouts_need_their_store():
    with pytest.raises(ConfigError, match="s2l.explorer.store is missing.*Set it to a folder that `s2l explore --out"):
        checked(*OFFLINE, "s2l.explorer.store=null")


@pytest.mark.parametrize("override", ["s2l.explorer.store=outputs/store", "s2l.explorer.on_exhausted=reuse"])
def test_a_live_explorer_refuses_what_only_a_store_reads(override):
    with pytest.raises(ConfigError, match="source=live does not have this key, source=offline does"):
        checked(override)


def test_a_live_explorer_needs_its_model():
    with pytest.raises(ConfigError, match=r"s2l\.explorer\.model_path is missing"):
        parse_s2l({"explorer": {}})


# ---- does the store have what the run's prompts need ---------------------------------------------------------------


def counted(counts, ids, on_exhausted="error", most=4):
    return check_counts(counts, ids, OfflineExplorer(store="DIR", on_exhausted=on_exhausted), most)


def test_enough_rollouts_of_every_prompt_pass_in_silence():
    assert counted({"a": 4, "b": 9, "unused": 1}, ["a", "b"]) == []


def test_a_prompt_that_the_data_has_several_times_needs_rollouts_for_each():
    """b is there three times: 3 x 4 in a step that draws all three."""
    ids = ["a", "b", "b", "b"]
    assert counted({"a": 4, "b": 12}, ids) == []
    refused = r"fewer than the 4 rollouts that a group may take for each of up to 3 rows .* of 1 of 2 prompts \(b: 11\)"
    with pytest.raises(DataError, match=refused + ".*--n 12,"):
        counted({"a": 4, "b": 11}, ids)
    (warning,) = counted({"a": 4, "b": 11}, ids, "learner")
    assert "fewer than 4 rollouts for each of up to 3 rows with its prompt of 1 of 2 prompts" in warning
    assert counted({"a": 4, "b": 4}, ids, "reuse") == [], "every group has different ones"


def test_repeated_prompts_run_out_sooner():
    """Two passes of two steps, 4 and 2 slots at most: 6 for every row, so 12 for b."""
    error = OfflineExplorer(store="DIR", on_exhausted="error")
    assert run_out_warnings({"a": 6, "b": 12}, ["a", "b", "b"], error, [4, 3, 2, 1], 2) == []
    (warning,) = run_out_warnings({"a": 6, "b": 11}, ["a", "b", "b"], error, [4, 3, 2, 1], 2)
    assert "6 rollouts for each of up to 2 rows with its prompt in this run's 4 steps, and 1 of 2 prompts" in warning
    assert "--n 12," in warning


@pytest.mark.parametrize("on_exhausted", ["error", "reuse", "learner"])
def test_a_store_of_another_prompt_set_is_refused(on_exhausted):
    with pytest.raises(DataError, match=r"DIR holds 1 prompts and none of the 2 of data.train_files \(a, b\)"):
        counted({"x": 9}, ["a", "b"], on_exhausted)


def test_prompts_that_the_store_lacks():
    for on_exhausted in ("error", "reuse"):
        with pytest.raises(DataError, match=r"no rollout of 1 of 2 prompts \(b\).*--only-missing"):
            counted({"a": 4}, ["a", "b"], on_exhausted)
    (warning,) = counted({"a": 4}, ["a", "b"], "learner")
    assert "fewer than 4 rollouts of 1 of 2 prompts; the learner samples the rest" in warning


def test_prompts_with_fewer_rollouts_than_a_group_takes():
    with pytest.raises(DataError, match=r"fewer than the 4 rollouts .* of 1 of 2 prompts \(b: 3\).*--n 4"):
        counted({"a": 4, "b": 3}, ["a", "b"])
    (warning,) = counted({"a": 4, "b": 3}, ["a", "b"], "reuse")
    assert "of 1 of 2 prompts (b: 3): a group holds the same rollout several times" in warning


@pytest.mark.parametrize(
    ("once", "have", "warned"),
    [(4, 12, False), (4, 11, True), (1, 35, False), (1, 34, True)],  # 8 of the first pass + 4 of the second; 8+7+...+2
)
def test_a_store_that_may_run_out_in_the_middle_of_the_run_is_warned_of(once, have, warned):
    explorer = OfflineExplorer(store="DIR")
    found = run_out_warnings({"a": have, "b": 99}, ["a", "b"], explorer, [8, 7, 6, 5, 4, 3, 2, 0, 0, 0], once)
    assert [f"1 of 2 prompts have fewer (a: {have})" in warning for warning in found] == [True] * warned
    for on_exhausted in ("reuse", "learner"):  # nothing ends
        other = OfflineExplorer(store="DIR", on_exhausted=on_exhausted)
        assert run_out_warnings({"a": 1, "b": 1}, ["a", "b"], other, [8, 8], 1) == []


# ---- the store, whole, against data and tokenizer ------------------------------------------------------------------

Check = Callable[..., list[str]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """16 prompts, and a model that says how they are tokenised."""
    folder = tmp_path_factory.mktemp("world")
    write_files(folder, 0, {"train": 16, "val": 2, "test": 2})
    build_model(SIZES["small"], 0).save_pretrained(folder / "model")
    build_tokenizer().save_pretrained(folder / "model")
    return folder


@pytest.fixture
def check(world: Path, tmp_path: Path) -> Check:
    """A store of the first ``prompts`` prompts with eight rollouts of each, checked against a run."""

    def run(
        *overrides: str, prompts: int = 16, complete: bool = True, fingerprint: Mapping[str, str] = MappingProxyType({})
    ) -> list[str]:
        tokenizer, rows = build_tokenizer(), pq.read_table(world / "train.parquet").to_pylist()[:prompts]
        drawn = []
        for row in rows:
            name = prompt_id(row["prompt"], row.get("extra_info"))
            ids = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True, return_dict=False)
            drawn += [Rollout(name, i, 0, list(ids), [3], [-0.5], False, 1.0, 1.0, "x") for i in range(8)]
        tmp_path.joinpath("store").mkdir()
        shard = write_shard(tmp_path / "store", 0, [(rollout, "p") for rollout in drawn])
        said: dict[str, Any] = {"model_name": "toy", "sampling": {"temperature": 0.7, "chat_options": {}}}
        said["tokenizer"] = digest(snapshot(str(world / "model"), "model"))
        write_manifest(tmp_path / "store", Manifest(said | dict(fingerprint), {"n": 8}, complete, (shard,)))
        words = [f"actor_rollout_ref.model.path={world / 'model'}", f"s2l.explorer.store={tmp_path / 'store'}"]
        cfg = compose_config("s2l_po/toy_offline", [*words, "data.train_batch_size=4", *overrides])
        return check_store(cfg, parse_s2l(cfg.s2l), [world / "train.parquet"])

    return run


def test_a_store_that_fits_passes_in_silence(check: Check) -> None:
    assert check() == []


def test_a_store_that_was_not_finished_is_warned_of(check: Check) -> None:
    (warning,) = check(complete=False)
    assert "is not complete" in warning and "s2l explore" in warning


def test_prompts_that_become_other_tokens_are_refused_before_models_load(check: Check) -> None:
    template = "actor_rollout_ref.model.custom_chat_template='{{ messages[0].content }}'"
    with pytest.raises(
        DataError, match=r"this run's prompt \w+ has \d+ tokens, its stored .*apply_chat_template_kwargs"
    ):
        check(template)


def test_a_sampler_with_another_template_passes_where_it_made_the_same_prompts(
    check: Check, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = snapshot(str(world / "model"), "model")
    other = here._replace(chat_template="{# a comment #}" + str(here.chat_template))
    assert digest(other) != digest(here) and token_digest(other) == token_digest(here)
    (warning,) = check(fingerprint={"tokenizer": digest(other), "tokens": token_digest(other)})
    assert warning.startswith("s2l.explorer.store=") and warning.endswith(
        f"was sampled by toy, whose chat template differs from actor_rollout_ref.model.path={world / 'model'}'s. Its "
        "rows are used where both make the same tokens of a prompt; a session of another prompt fails."
    )


@pytest.mark.parametrize("tokens", [{}, {"tokens": "of another vocabulary"}], ids=["unknown", "other"])
def test_a_store_of_other_tokens_is_refused(check: Check, world: Path, tmp_path: Path, tokens: dict[str, str]) -> None:
    """A store that does not say its tokens apart from its template is refused for either."""
    with pytest.raises(TokenizerMismatch) as refused:
        check(fingerprint={"tokenizer": "of another family", **tokens})
    assert str(refused.value) == (
        f"s2l.explorer.store={tmp_path / 'store'} was sampled by toy, whose vocabulary, special ids or chat template "
        f"differ from actor_rollout_ref.model.path={world / 'model'}'s. Its tokens would be read as others; sample a "
        "store with a model of the learner's family."
    )


def test_only_prompts_that_the_run_reads_need_rollouts(check: Check) -> None:
    assert check("data.train_max_samples=8", "data.shuffle=False", prompts=8) == []


def test_a_run_that_ran_out_may_be_resumed_under_another_policy(check: Check, tmp_path: Path) -> None:
    """A store that grew is another one, so on_exhausted is the only way on; it changes nothing of what was taken."""
    check()
    words = [f"s2l.explorer.store={tmp_path / 'store'}", "s2l.explorer.on_exhausted="]
    cfgs = [compose_config("s2l_po/toy_offline", [words[0], words[1] + policy]) for policy in ("error", "learner")]
    first, second = (state.fingerprint(parse_s2l(cfg.s2l), cfg) for cfg in cfgs)
    assert first == second and "explorer.store.sha256" in first


def test_prompts_taken_at_random_are_looked_for_later(check: Check) -> None:
    (warning,) = check("data.train_max_samples=8", "data.shuffle=True", prompts=8)
    assert "train_max_samples takes prompts at random" in warning


def test_all_prompts_need_rollouts_when_all_are_read(check: Check) -> None:
    with pytest.raises(DataError, match="no rollout of 8 of 16 prompts"):
        check(prompts=8)


def test_a_run_of_several_passes_may_run_out(check: Check) -> None:
    (warning,) = check("s2l.explorer.on_exhausted=error")  # 4 steps a pass: 8 in the first and 4 in the second
    assert "may be asked for 12 rollouts in this run's 16 steps, and 16 of 16 prompts have fewer" in warning
