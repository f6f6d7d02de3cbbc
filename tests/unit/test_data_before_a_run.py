"""What a data set is, seen before a run: DAPO's rows, the draw over tiers, golds as the reward reads them, judges."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.cli import main
from s2l_ext.data import dapo, openr1
from s2l_ext.data.drawing import TierDraw
from s2l_ext.data.gold_report import report
from s2l_ext.errors import DataError
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.rewards.registry import place_of
from s2l_ext.store.reader import Manifest
from s2l_ext.store.shards import write_manifest
from s2l_ext.training.inputs import Inputs
from s2l_ext.training.judges import VERLS_OWN, judge_of_run, judge_warnings
from s2l_ext.training.preflight import _drawn_anew, _read_golds

MATH = "s2l_ext.rewards.math:compute_score"
TRACE = "<think>\nOne and one make two, as counting shows.\n</think>\n\nThe answer is \\boxed{2}."


def verl_row(problem: str, truth: Any, **changes: Any) -> dict[str, Any]:
    content = f"{dapo.BEFORE}\n\n{problem}\n\n{dapo.AFTER}"
    prompt = [{"role": "user", "content": content}]
    model = {"ground_truth": truth, "style": "rule-lighteval/MATH_v2"}
    return {"data_source": "math_dapo", "prompt": prompt, "reward_model": model} | changes


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


# ---- DAPO-Math-17k -------------------------------------------------------------------------------------------------


def test_dapo_rows_become_one_a_problem_with_a_boxed_prompt(tmp_path, rows_of):
    rows = [verl_row("Find $1+1$.\n\nNow.", "2"), verl_row("Find 3.", "3"), verl_row("Find 3. ", "3")]
    path = parquet(tmp_path / "raw.parquet", [*rows, verl_row("Find  3.", "4")])
    (written,) = dapo.Dapo().convert(path, tmp_path / "out")
    assert (written.rows, written.dropped_rows) == (
        2,
        {"repeated problem": 1, "repeated problem with another answer": 1},
    )
    first, second = rows_of(tmp_path / "out" / "train.parquet")
    assert first["prompt"] == [{"role": "user", "content": f"Find $1+1$.\n\nNow.\n{dapo.INSTRUCTION}"}]
    assert [row["reward_model"]["ground_truth"] for row in (first, second)] == ["2", "3"]
    assert first["data_source"] == "math_dapo" and first["extra_info"]["id"].startswith("dapo-")


def test_dapos_own_prompt_can_stay(tmp_path, rows_of):
    path = parquet(tmp_path / "raw.parquet", [verl_row("Find 3.", "3")])
    dapo.Dapo(prompt="answer-line", name="test").convert(path, tmp_path / "out")
    (row,) = rows_of(tmp_path / "out" / "test.parquet")
    assert row["prompt"] == verl_row("Find 3.", "3")["prompt"]


OTHER = [{"role": "user", "content": "Find 3."}]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            verl_row("Find 3.", "3", prompt=OTHER),
            "raw.jsonl:2: column 'prompt' is [{'role': 'user', 'content': 'Find 3.'}], not one message with DAPO's "
            "instruction around a problem. Files of another form are read by `s2l data jsonl`, or are verl parquet "
            "already.",
        ),
        (verl_row("Find 3.", "3", prompt="Find 3."), "raw.jsonl:2: column 'prompt' is 'Find 3.', not one message"),
        (verl_row("\x0crac", "3"), "raw.jsonl:2: column 'prompt' has the control character U+000C"),
        (verl_row("Find 3.", float("nan")), "raw.jsonl:2: column 'reward_model.ground_truth' is nan."),
        (
            verl_row("Find 3.", "3", reward_model={"style": "rule"}),
            "raw.jsonl:2: column 'reward_model' is {'style': 'rule'}, with no 'ground_truth'.",
        ),
    ],
)
def test_rows_of_another_form_are_refused(tmp_path, jsonl, row, message):
    path = jsonl(tmp_path / "raw.jsonl", [verl_row("Find 2.", "2"), row])
    with pytest.raises(DataError) as error:
        dapo.Dapo().convert(path, tmp_path / "out")
    assert str(error.value).replace(f"{tmp_path}/", "").startswith(message)
    assert not (tmp_path / "out").exists()


def test_the_command_says_what_the_reward_reads(tmp_path, capsys):
    path = parquet(tmp_path / "raw.parquet", [verl_row("Find 3.", "3e-05"), verl_row("Solve.", "x^")])
    assert main(["data", "dapo", "--input", str(path), "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out.splitlines()
    train = tmp_path / "out" / "train.parquet"
    assert said[-2:] == ["golds as the reward reads them: 1 number, 1 not read", f"  not read: {train}: row 1: 'x^'"]
    words = ["data", "dapo", "--input", str(path), "--out", str(tmp_path / "out"), "--json", "--overwrite"]
    assert main(words) == 0
    golds = json.loads(capsys.readouterr().out)["golds"]
    assert golds["counts"]["unread"] == 1 and golds["examples"][0]["gold"] == "x^"


# ---- the draw over tiers -------------------------------------------------------------------------------------------


def test_tiers_give_equal_shares_and_what_one_lacks_goes_to_the_others():
    draw: TierDraw[str] = TierDraw(10, seed=1)
    for tier, rows in (("easy", 20), ("hard", 1), ("middle", 30)):
        for number in range(rows):
            draw.offer(tier, f"{tier}{number}", f"{tier}{number}")
    assert draw.shares() == {"hard": 1, "easy": 4, "middle": 5} and draw.left_out == 41
    drawn = list(draw.drawn())
    offered = [
        f"{tier}{number}" for tier, rows in (("easy", 20), ("hard", 1), ("middle", 30)) for number in range(rows)
    ]
    assert len(drawn) == 10 and drawn == [name for name in offered if name in drawn]


def test_rows_with_the_smallest_lots_are_drawn():
    draw: TierDraw[str] = TierDraw(3, seed=7)
    names = [f"p{number}" for number in range(20)]
    for name in names:
        draw.offer("one", name, name)
    lots = {name: hashlib.sha256(f"7 {name}".encode()).hexdigest() for name in names}
    assert set(draw.drawn()) == set(sorted(names, key=lots.__getitem__)[:3])


def test_the_draw_is_the_same_in_any_order_and_another_with_another_seed():
    def drawn(names: list[int], seed: int) -> set[str]:
        draw: TierDraw[str] = TierDraw(5, seed)
        for name in names:
            draw.offer(name % 2, str(name), str(name))
        return set(draw.drawn())

    assert drawn(list(range(40)), 0) == drawn(list(range(39, -1, -1)), 0) != drawn(list(range(40)), 1)


def test_open_r1_draws_rows_evenly_over_the_tiers(tmp_path, jsonl, rows_of):
    sources = ["olympiads"] * 6 + ["cn_contest"] * 2
    base = {"answer": "2", "generations": [TRACE]}
    rows = [{"problem": f"q{n}", "source": source, **base} for n, source in enumerate(sources)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    (written,) = openr1.OpenR1(num_rows=4, seed=3).convert(path, tmp_path / "out")
    assert written.tiers == {"cn_contest": 2, "olympiads": 2} and written.dropped_rows == {"not drawn": 4}
    again = openr1.OpenR1(num_rows=4, seed=3).convert(jsonl(tmp_path / "b.jsonl", rows[::-1]), tmp_path / "other")
    assert again[0].tiers == written.tiers
    ids = [{row["extra_info"]["id"] for row in rows_of(tmp_path / name / "train.parquet")} for name in ("out", "other")]
    assert ids[0] == ids[1]
    with pytest.raises(DataError, match="--rows 0 must be at least 1"):
        openr1.main(_words("--input", path, "--out", tmp_path / "x", "--rows", "0"))


def _words(*words: object) -> Any:
    import argparse

    parser = argparse.ArgumentParser()
    openr1.add_arguments(parser)
    return parser.parse_args([str(word) for word in words])


# ---- golds ---------------------------------------------------------------------------------------------------------


def gold_file(folder: Path, golds: list[Any]) -> Path:
    return parquet(folder / "g.parquet", [verl_row("q", gold) for gold in golds])


@pytest.mark.slow
def test_golds_are_counted_by_kind_with_the_first_that_are_not_read_whole(tmp_path):
    path = gold_file(tmp_path, ["7", "7", "12", "\\frac{3}{7}x", "$12$;$\\frac{3}{7}$", "x^", "x^", "y^{", "z^{{"])
    found = report([path])
    assert {kind: count for kind, count in found.counts.items() if count} == {
        "number": 3,
        "expression": 1,
        "several": 1,
        "unread": 4,
    }
    assert (
        found.as_lines()[0] == "golds as the reward reads them: 3 number, 1 expression, 1 several answers, 4 not read"
    )
    assert found.as_lines()[1] == f"  not read: {path}: row 5: 'x^'"
    assert (found.unsafe, found.distinct, found.looked_at, len(found.examples)) == (4, 7, 7, 3)
    assert found.warning() == (
        f"4 of 9 golds are read in part or not at all, so that only the same text is right (first: {path}: row 5: "
        "'x^'). Rewrite these answers or remove their rows."
    )


@pytest.mark.slow
def test_of_many_golds_some_evenly_spaced_are_read_and_the_report_says_so(tmp_path):
    """Every third of seven, and the plain numbers: one kind of answer may fill the start of a file, another its end."""
    golds = [f"x^{{{n}}}" for n in range(6)] + ["x^", "1", "2"]
    found = report([gold_file(tmp_path, golds)], most=3)
    assert found.counts["unread"] == 1 and found.counts["expression"] == 2
    assert (found.distinct, found.looked_at, found.counts["number"]) == (9, 5, 2)
    assert found.as_lines()[0].startswith("golds as the reward reads them (5 of 9 different ones): ")


@pytest.mark.slow
def test_preflight_reads_the_golds_of_mathematical_runs_only(tmp_path, configured, capsys):
    path = str(gold_file(tmp_path, ["7", "x^"]))
    files = {"data__train_files": path, "data__val_files": path}
    (warning,) = _read_golds(configured("grpo/qwen3_8b", **files))
    assert warning.startswith("1 of 2 golds are read in part or not at all")
    assert "golds as the reward reads them: 1 number, 1 not read" in capsys.readouterr().err
    assert _read_golds(configured("grpo/toy", **files)) == [] and capsys.readouterr().err == ""


@pytest.mark.slow
def test_a_sample_without_a_seed_is_named(tmp_path, configured):
    path = str(gold_file(tmp_path, ["1", "2", "3"]))

    def said(**settings: Any) -> list[str]:
        cfg = configured("grpo/qwen3_8b", data__train_files=path, **settings)
        return _drawn_anew(Inputs(cfg, parse_s2l(cfg.s2l)))

    assert said(data__train_max_samples=2)[0].startswith(
        "data.train_max_samples=2 of 3 rows are drawn without data.seed: a resumed run, or another arm"
    )
    assert said(data__train_max_samples=2, data__seed=0) == said(data__train_max_samples=3) == said() == []
    assert said(data__train_max_samples=2, data__shuffle=False) == []


# ---- judges --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("math", MATH),
        ("pkg://s2l_ext.rewards.math", MATH),
        ("s2l_ext/rewards/math:compute_score_async", MATH),
        ("mine.py:f", "mine.py:f"),
        ("nobody", "nobody"),
    ],
)
def test_a_reward_has_one_spelling(name, place):
    assert place_of(name) == place


def test_the_judge_of_a_run(configured):
    reward = "reward__custom_reward_function__"
    registered = {f"{reward}path": "pkg://s2l_ext.rewards.registry", f"{reward}reward_kwargs": {"reward": "quantity"}}
    assert judge_of_run(configured("grpo/qwen3_8b")) == MATH
    assert judge_of_run(configured("grpo/qwen3_8b", **{f"{reward}path": None})) == VERLS_OWN
    assert judge_of_run(configured("grpo/qwen3_8b", **registered)) == "s2l_ext.rewards.quantity:compute_score"


def a_store(folder: Path, *judges: str) -> str:
    folder.mkdir()
    write_manifest(folder, Manifest({"reward": list(judges)}, {"n": 1, "prompts": 1, "problems": ""}))
    return str(folder)


@pytest.mark.parametrize("key", ["s2l.curriculum.warm_start", "s2l.explorer.store", "s2l.guidance.teacher_rollouts"])
def test_a_store_that_another_reward_judged_is_named_with_both(tmp_path, configured, key):
    store = a_store(tmp_path / "store", "math")
    block, field = key.removeprefix("s2l.").split(".")
    blocks: dict[str, dict[str, Any]] = {
        "curriculum": {"type": "gaussian"},
        "explorer": {"source": "offline"},
        "guidance": {"alpha": 0.5},
    }

    def warned(path: str | None, folder: str) -> list[str]:
        settings = {f"s2l__{block}": blocks[block] | {field: folder}, "reward__custom_reward_function__path": path}
        cfg = configured("grpo/qwen3_8b", **settings)
        return judge_warnings(cfg, parse_s2l(cfg.s2l))

    assert warned("pkg://s2l_ext.rewards.math", store) == []
    assert warned(None, store) == [
        f"{key}={store} was judged by {MATH}, this run by {VERLS_OWN}: pass rates and right answers of the store are "
        "another judge's (its responses are judged anew). To have one judge, set reward.custom_reward_function to the "
        "store's."
    ]
    two = a_store(tmp_path / "two", MATH, "choice")
    (said,) = warned("pkg://s2l_ext.rewards.math", two)
    assert f"was judged by {MATH}, s2l_ext.rewards.choice:compute_score, this run by {MATH}: " in said
    assert f"To have one judge, sample it with `s2l explore --reward {MATH}`, or set reward.custom" in said
