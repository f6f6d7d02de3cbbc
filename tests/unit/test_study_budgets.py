"""Studies: budgets that are not known."""

import json

import pytest
from omegaconf import OmegaConf

from s2l_ext.cli import main
from s2l_ext.studies.study import file, run
from s2l_ext.studies.study.file import Arm, Study, StudyBlock
from s2l_ext.studies.study.results import Result
from s2l_ext.studies.study.table import rows_of, sentences


def made(matched: list[str]) -> Study:
    block = StudyBlock("tiny", "grpo/toy", {}, "grpo", seeds=3, matched=matched)
    names = ("grpo", "hot")
    return Study(block, tuple(Arm(name, "grpo/toy", (), OmegaConf.create()) for name in names), names)


def result(arm: str, seed: int, flops: float | None, error: str = "") -> Result:
    spent = {} if error else {"learner_tokens": 10.0, "flops": flops, "seconds": 1.0}
    found = {} if error else {"toy": [0.1 * seed, 0.5]}
    return Result("tiny", arm, "local", seed, 1e-4, "f", "c", found, {}, spent, error)


def results(grpo: list[float | None], hot: list[float | None]) -> dict[str, list[Result]]:
    sides = (("grpo", grpo), ("hot", hot))
    return {arm: [result(arm, seed, value) for seed, value in enumerate(flops, start=1)] for arm, flops in sides}


@pytest.mark.parametrize(
    ("grpo", "hot", "arms"),
    [
        ([None] * 3, [None] * 3, "grpo, hot"),
        ([100.0] * 3, [100.0, None, 100.0], "hot"),
        ([None] * 3, [100.0] * 3, "grpo"),
    ],
)
def test_a_matched_quantity_that_is_not_known_is_said_so(grpo, hot, arms: str) -> None:
    rows = rows_of(made(["prompts", "flops", "learner_tokens"]), results(grpo, hot))
    assert [line for line in sentences(rows) if "not known" in line] == [
        f"flops is not known for {arms}, so matching was not checked."
    ]
    assert not any(row.unmatched for row in rows)


def test_only_finished_runs_and_matched_quantities_are_asked() -> None:
    failed = [result("hot", seed, None, error="exit code 1") for seed in (1, 2, 3)]
    rows = rows_of(made(["flops"]), {"grpo": results([100.0] * 3, [])["grpo"], "hot": failed})
    assert not any(row.unknown for row in rows)
    assert not any(row.unknown for row in rows_of(made(["prompts"]), results([None] * 3, [None] * 3)))


@pytest.mark.parametrize(("flops", "code"), [(None, 1), (100.0, 0)])
def test_the_command_ends_with_1_where_matching_was_not_checked(flops, code, tmp_path, monkeypatch, capsys) -> None:
    (tmp_path / "tiny.yaml").touch()
    monkeypatch.setattr(file, "read_study", lambda *_: made(["flops"]))
    monkeypatch.setattr(run.Runner, "check", lambda _: None)
    monkeypatch.setattr(run.Runner, "run", lambda _: results([flops] * 3, [flops] * 3))
    assert main(["study", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path / "out"), "--json"]) == code
    said = capsys.readouterr().out
    assert json.loads(said)["arms"]["hot"]["unknown"] == (["flops"] if flops is None else [])
