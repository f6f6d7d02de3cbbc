"""Studies: budgets that are not known, and merged seeds that the study does not count."""

import json
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from s2l_ext.cli import main
from s2l_ext.studies.study import file, run
from s2l_ext.studies.study.file import Arm, Study, StudyBlock
from s2l_ext.studies.study.results import Result, write_result
from s2l_ext.studies.study.run import RESULT, outside_of
from s2l_ext.studies.study.table import rows_of, sentences


def made(matched: list[str], first_seed: int = 1) -> Study:
    block = StudyBlock("tiny", "grpo/toy", {}, "grpo", seeds=3, first_seed=first_seed, matched=matched)
    return Study(block, tuple(Arm(name, "grpo/toy", (), OmegaConf.create()) for name in ("grpo", "hot")))


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
    for seed in (3, 4, 5, 6):
        path = tmp_path / "other" / "runs" / "hot" / f"lr0.0001-seed{seed}" / RESULT
        write_result(path, result("hot", seed, flops))
    words = ["--out", str(tmp_path / "out"), "--merge", str(tmp_path / "other"), "--json"]
    assert main(["study", str(tmp_path / "tiny.yaml"), *words]) == code
    said = capsys.readouterr()
    assert json.loads(said.out)["arms"]["hot"]["unknown"] == (["flops"] if flops is None else [])
    assert "3 merged seeds (4 to 6) are outside this study's seeds 1 to 3: give --seeds 6\n" in said.err


@pytest.mark.parametrize(
    ("seeds", "first_seed", "said"),
    [
        ((1, 2, 3), 1, ""),
        ((5,), 1, "1 merged seed (5) is outside this study's seeds 1 to 3: give --seeds 5"),
        (
            (1, 2, 8),
            4,
            "3 merged seeds (1 to 2, 8) are outside this study's seeds 4 to 6: "
            "give --seeds 8, and first_seed: 1 in the file",
        ),
    ],
)
def test_merged_seeds_outside_the_studys_own_are_said(tmp_path: Path, seeds, first_seed, said: str) -> None:
    """Runs that chose a learning rate have seeds of their own, from 1000000."""
    for kind, seed in [*(("runs", seed) for seed in seeds), ("tuning", 1_000_000)]:
        write_result(tmp_path / kind / "hot" / f"lr0.0001-seed{seed}" / RESULT, result("hot", seed, 1.0))
    assert outside_of(made([], first_seed), [tmp_path]) == said
