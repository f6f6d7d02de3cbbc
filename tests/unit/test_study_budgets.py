"""Studies: budgets that are not known or not matched, and a validation that is not whole."""

import json

import pytest
from omegaconf import OmegaConf

from s2l_ext.cli import main
from s2l_ext.errors import DataError
from s2l_ext.studies.study import file, run
from s2l_ext.studies.study.file import Arm, Study, StudyBlock
from s2l_ext.studies.study.results import Result, measured
from s2l_ext.studies.study.table import as_json, rows_of, sentences


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


def test_a_baseline_that_spent_nothing_matches_only_what_spent_nothing() -> None:
    rows = rows_of(made(["flops"]), results([0.0] * 3, [9600.0] * 3))
    assert rows[0].unmatched == {} and rows[1].unmatched == {"flops": None}
    assert "hot is not matched in flops: the baseline has none." in sentences(rows)
    assert "Infinity" not in json.dumps(as_json(made(["flops"]), rows))


def test_a_validation_without_the_sessions_that_failed_has_no_accuracy(tmp_path) -> None:
    """One of two problems failed: verl logs 0.5 and dumps the other, which is right."""
    rows = [{"input": name, "acc": acc} for name, acc in (("a", 1.0), ("b", 0.0))]
    config = {"data": {"train_batch_size": 2}, "actor_rollout_ref": {"rollout": {"n": 4}}}
    (tmp_path / "validation").mkdir()
    (tmp_path / "s2l_config.yaml").write_text(json.dumps(config))
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "data": {"val-core/toy/acc/mean@1": 0.5}}) + "\n")
    dump = tmp_path / "validation" / "1.jsonl"
    dump.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert measured(tmp_path)["accuracies"] == {"all": [1.0, 0.0]}
    dump.write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(DataError, match=r"the mean of step 1 is not what the run logged as val-core/toy.*Sessions"):
        measured(tmp_path)


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
