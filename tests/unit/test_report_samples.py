"""What is chosen to read, and the parts of a response."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from s2l_ext.errors import DataError
from s2l_ext.report import samples
from s2l_ext.report.held_out import HeldOut
from s2l_ext.report.run import Run
from s2l_ext.report.samples import Sample, chosen_rollouts

SLOTS = "s2l/explorer/slots"


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
    found = chosen_rollouts(dumped(tmp_path, {1: rows}))
    assert [(sample.source, sample.verdict, sample.response) for sample in found] == [
        ("explorer", "right", "out 0"),
        ("explorer", "wrong", "out 0"),
        ("learner", "right", "out 1"),
        ("learner", "score 0.25", "out 3"),
    ]


def test_first_middle_and_last_step(tmp_path):
    found = chosen_rollouts(dumped(tmp_path, {step: [row(1)] for step in (2, 4, 10, 12, 20)}))
    assert [sample.step for sample in found] == [2, 10, 20]


def test_a_dump_that_names_source_and_guidance_is_believed(tmp_path):
    line = row(0, s2l_source="learner", guidance="out", acc=1.0)
    (found,) = chosen_rollouts(dumped(tmp_path, {1: [line]}, slots=8))
    prompt = "user\n1+1=?\nassistant\n"
    assert found == Sample(1, "learner, guided", "right", prompt, "out", " 0", "2")


def test_guidance_has_a_column_where_there_is_some(tmp_path):
    run = dumped(tmp_path, {1: [row(1, guidance="o"), row(2, score=1.0)]})
    guided, _ = samples.figures(HeldOut(run))
    assert "<th>guidance</th>" in guided and "<code>o</code>" in guided and "<code>ut 1</code>" in guided
    assert "<code>1+1=?</code>" in guided and "badge learner'>learner, guided<" in guided


def test_texts_are_escaped_and_cut(tmp_path):
    run = dumped(tmp_path, {1: [row(1, output="<b>" + "x" * 2500)]})
    text = samples.figures(HeldOut(run))[0]
    assert "<b>" not in text and "&lt;b&gt;xxx" in text and "… (503 more characters)" in text


def test_the_folder_is_where_the_configuration_says(tmp_path):
    run = dumped(tmp_path / "elsewhere", {1: [row(1)]})
    config = {"trainer": {"default_local_dir": "/old/run", "rollout_data_dir": "/old/elsewhere/rollouts"}}
    moved = Run("run", run.metrics, [], tmp_path / "run", config)
    assert [path.name for path in samples.rollout_files(moved)] == ["1.jsonl"]


def test_without_dumps_it_says_what_to_set(tmp_path):
    told, learned = samples.figures(HeldOut(Run("run", [(1, {})], [], tmp_path)))
    assert "Set trainer.rollout_data_dir" in told and "trainer.validation_data_dir" in learned


@pytest.mark.parametrize("bad", ["nonsense", "[]", '{"input": "a", "output": "b"}', '{"score": "high"}'])
def test_a_bad_row_is_named(tmp_path, bad):
    run = dumped(tmp_path, {1: [row(1)]})
    with open(tmp_path / "rollouts" / "1.jsonl", "a") as file:
        file.write(bad + "\n")
    with pytest.raises(DataError, match=r"1\.jsonl:2: not a row of a rollout dump"):
        chosen_rollouts(run)
