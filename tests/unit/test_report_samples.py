"""What is chosen to read, and the parts of a response."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2l_ext.errors import DataError
from s2l_ext.report import samples
from s2l_ext.report.run import Run
from s2l_ext.report.samples import Sample, choose_rollouts

SLOTS = "s2l/explorer/rollouts_per_group"


def row(session: int, **changes) -> dict:
    fields = {"input": "user\n1+1=?\nassistant\n", "output": f"out {session}", "gts": "2", "score": 0.0, "step": 1}
    return fields | {"uid": f"a-b_{session}_0"} | changes


def dumped(folder: Path, steps: dict[int, list[dict]], slots: int = 1) -> Run:
    (folder / "rollouts").mkdir(parents=True)
    for step, rows in steps.items():
        (folder / "rollouts" / f"{step}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in rows))
    return Run("run", [(step, {SLOTS: slots}) for step in steps], [], folder)


def test_the_first_of_each_source_and_verdict(tmp_path):
    rows = [row(0), row(1, score=1.0), row(2, score=1.0), row(3, score=0.25), row(0, score=1.0)]
    found = choose_rollouts(dumped(tmp_path, {1: rows}))
    assert [(sample.source, sample.verdict, sample.response) for sample in found] == [
        ("explorer", "right", "out 0"),
        ("explorer", "wrong", "out 0"),
        ("learner", "right", "out 1"),
        ("learner", "score 0.25", "out 3"),
    ]


def test_first_middle_and_last_step(tmp_path):
    found = choose_rollouts(dumped(tmp_path, {step: [row(1)] for step in (2, 4, 10, 12, 20)}))
    assert [sample.step for sample in found] == [2, 10, 20]


def test_a_dump_that_names_source_and_guidance_is_believed(tmp_path):
    line = row(0, s2l_source="learner", guidance="out", acc=1.0)
    (found,) = choose_rollouts(dumped(tmp_path, {1: [line]}, slots=8))
    prompt = "user\n1+1=?\nassistant\n"
    assert found == Sample(1, "learner, guided", "right", prompt, "out", " 0", "2")


def test_guidance_has_a_column_where_there_is_some(tmp_path):
    run = dumped(tmp_path, {1: [row(1, guidance="o"), row(2, score=1.0)]})
    guided, _ = samples.figures(run)
    assert "<th>guidance</th>" in guided and "<code>o</code>" in guided and "<code>ut 1</code>" in guided
    assert "<code>1+1=?</code>" in guided and "badge learner'>learner, guided<" in guided


def logged(folder: Path, steps: list[tuple[int, list[dict]]]) -> Run:
    text = "".join(json.dumps({"step": step, "rows": rows}) + "\n" for step, rows in steps)
    (folder / "samples.jsonl").write_text(text)
    return Run("run", [(1, {})], [], folder)


def own(**changes) -> dict:
    fields = {"uid": "a", "session": 0, "source": "learner", "prompt": "1+1=?", "guidance": "", "response": "2"}
    return fields | {"score": 0.5, "acc": 1.0, "ground_truth": "2"} | changes


def test_the_runs_own_file_comes_before_dumps(tmp_path):
    dumped(tmp_path, {1: [row(1)]})
    rows = [own(source="explorer"), own(acc=0.0, response="3"), own(guidance="one and"), own(acc=0.0, response="4")]
    assert choose_rollouts(logged(tmp_path, [(7, rows)])) == [
        Sample(7, "explorer", "right", "1+1=?", "", "2", "2"),
        Sample(7, "learner", "wrong", "1+1=?", "", "3", "2"),
        Sample(7, "learner, guided", "right", "1+1=?", "one and", "2", "2"),
    ]


def test_a_repeated_step_of_the_runs_own_file_counts_once(tmp_path):
    lines = [(step, [own(response=str(step))]) for step in (1, 2, 3, 4)]
    run = logged(tmp_path, [*lines, (4, [own(response="again", acc=None, ground_truth=None)])])
    with open(tmp_path / "samples.jsonl", "a") as file:
        file.write('{"step": 5, "ro')  # a torn last line
    found = choose_rollouts(run)
    assert [(sample.step, sample.response) for sample in found] == [(1, "1"), (3, "3"), (4, "again")]
    assert (found[-1].verdict, found[-1].truth) == ("score 0.5", "")


@pytest.mark.parametrize("bad", ['{"step": 1}', '{"step": 1, "rows": [{"source": "learner"}]}', "[]", "x"])
def test_a_bad_line_of_the_runs_own_file_is_named(tmp_path, bad):
    run = logged(tmp_path, [(1, [own()])])
    path = tmp_path / "samples.jsonl"
    path.write_text(f"{bad}\n{path.read_text()}")
    with pytest.raises(DataError, match=r"samples\.jsonl:1: not a line of samples"):
        choose_rollouts(run)


def test_texts_are_escaped_and_long_ones_fold_and_end(tmp_path):
    run = dumped(tmp_path, {1: [row(1, output="<b>" + "x" * 397), row(2, output="y" * 25_500, score=1.0)]})
    text = samples.figures(run)[0]
    assert "<b>" not in text and "<code>&lt;b&gt;xxx" in text and text.count("<details>") == 1
    assert f"<summary><code>{'y' * 200}</code> … (25500 characters)</summary><code>yyy" in text
    assert f"{'y' * 25_000}</code> … (500 more characters)</details>" in text


def test_the_folder_is_where_the_configuration_says(tmp_path):
    run = dumped(tmp_path / "elsewhere", {1: [row(1)]})
    config = {"trainer": {"default_local_dir": "/old/run", "rollout_data_dir": "/old/elsewhere/rollouts"}}
    moved = Run("run", run.metrics, [], tmp_path / "run", config)
    assert [sample.response for sample in choose_rollouts(moved)] == ["out 1"]


def test_without_dumps_it_says_what_to_set(tmp_path):
    told, learned = samples.figures(logged(tmp_path, [(1, [])]))
    assert (
        "neither samples.jsonl nor dumps of trainer.rollout_data_dir" in told
        and "trainer.validation_data_dir" in learned
    )


@pytest.mark.parametrize("bad", ["nonsense", "[]", '{"input": "a", "output": "b"}', '{"score": "high"}'])
def test_a_bad_row_is_named(tmp_path, bad):
    run = dumped(tmp_path, {1: [row(1)]})
    with open(tmp_path / "rollouts" / "1.jsonl", "a") as file:
        file.write(f"{bad}\n{json.dumps(row(2))}\n")
    with pytest.raises(DataError, match=r"1\.jsonl:2: not a row of a rollout dump"):
        choose_rollouts(run)
