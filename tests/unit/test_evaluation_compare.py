"""Paired comparison of two results."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest

from s2l_ext import cli
from s2l_ext.cli.compare import as_lines
from s2l_ext.errors import DataError
from s2l_ext.evaluation.compare import compare

SAMPLING = {"n": 4, "temperature": 0.6, "seed": 0}


def result(correct: list[int], **changes: Any) -> dict[str, Any]:
    rows = [{"prompt_id": f"p{i}", "num_samples": 4, "num_correct": c} for i, c in enumerate(correct)]
    prints = {"data": "d", "reward": ["r"], "limit": None, "benchmark": None, "sampling": dict(SAMPLING)}
    accuracy = sum(correct) / 4 / len(correct)
    return {
        "model": "m",
        "accuracy": accuracy,
        "standard_error": 0.1,
        "pass_at_k": {"1": accuracy, "4": 1.0},
        "problems": rows,
        "fingerprints": prints | changes,
    }


@pytest.fixture
def write(tmp_path: Path):
    def to_file(name: str, document: Any) -> Path:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document))
        return path

    return to_file


def test_by_hand(write) -> None:
    a, b = write("a.json", result([0, 4, 2, 1])), write("b.json", result([4, 4, 1, 2]))
    found = compare(a, b)
    assert found["difference"] == pytest.approx(0.25)
    assert (found["wins"], found["losses"], found["ties"], found["num_problems"]) == (2, 1, 1, 4)
    assert found["ci95"][0] <= 0.25 <= found["ci95"][1]
    assert compare(a, b) == found
    assert compare(b, a)["difference"] == pytest.approx(-0.25)


def test_pass_at_k_has_a_paired_interval_of_its_own(write) -> None:
    """pass@4 of four samples is 1 with any right one: only the first problem differs."""
    found = compare(write("a.json", result([0, 4, 2, 1])), write("b.json", result([4, 4, 1, 2])))
    assert found["pass_at_k_difference"] == {"1": pytest.approx(0.25), "4": pytest.approx(0.25)}
    assert found["pass_at_k_ci95"]["1"] == found["ci95"]
    low, high = found["pass_at_k_ci95"]["4"]
    assert low == 0.0 and 0.5 <= high <= 1.0
    assert any(line.startswith("pass@4") and f"{low:+.4f} to {high:+.4f}" in line for line in as_lines(found))


def test_a_model_equals_itself(write) -> None:
    a = write("a.json", result([1, 2, 3]))
    found = compare(a, a)
    assert (found["difference"], found["ci95"], found["ties"]) == (0.0, [0.0, 0.0], 3)
    assert "interval holds 0" in "\n".join(as_lines(found))


@pytest.mark.parametrize("name", ["data", "reward", "limit", "benchmark"])
def test_another_fingerprint_is_refused(write, name: str) -> None:
    a, b = write("a.json", result([1])), write("b.json", result([1], **{name: "other"}))
    with pytest.raises(DataError, match=f"differ in {name}.*other"):
        compare(a, b)


def test_other_sampling_is_refused_and_can_be_allowed(write) -> None:
    a = write("a.json", result([1]))
    b = write("b.json", result([1], sampling=SAMPLING | {"seed": 1, "n": 8}))
    with pytest.raises(DataError, match=r"n 4 / 8, seed 0 / 1.*--allow n --allow seed"):
        compare(a, b)
    assert compare(a, b, allowed=("n", "seed"))["num_problems"] == 1
    with pytest.raises(DataError, match="--allow speed: no sampling setting"):
        compare(a, b, allowed=("speed",))


def test_other_problems_are_refused(write) -> None:
    a, b = write("a.json", result([1, 2, 3])), write("b.json", result([1, 2]))
    with pytest.raises(DataError, match=r"3 problems, .* 2, and 2 are in both"):
        compare(a, b)


def test_other_files_are_named(write, tmp_path: Path) -> None:
    a = write("a.json", result([1]))
    without = copy.deepcopy(result([1]))
    del without["problems"]
    uncounted = copy.deepcopy(result([1]))
    del uncounted["problems"][0]["num_correct"]
    cases = (
        ("b.json", "{", "not a result"),
        ("c.json", without, "no 'problems'"),
        ("d.json", uncounted, "no 'num_correct'"),
    )
    for name, document, reason in cases:
        with pytest.raises(DataError, match=rf"{name}: .*{reason}"):
            compare(a, write(name, document))
    with pytest.raises(DataError, match=r"none\.json: cannot be read"):
        compare(a, tmp_path / "none.json")


def counted(rows: list[list[Any]], ks: Any) -> dict[str, Any]:
    found = result([1] * len(rows)) if rows else result([1]) | {"problems": []}
    for row, (samples, correct) in zip(found["problems"], rows, strict=True):
        row |= {"num_samples": samples, "num_correct": correct}
    return found | {"pass_at_k": ks}


IMPOSSIBLE = {
    "H089 fewer samples than k": ([[4, 2], [2, 1]], {"1": 0.5, "4": 0.9}, "problem p1 has 2 samples, pass@4 needs 4"),
    "H090 more right than samples": ([[4, 9], [4, 1]], {"1": 0.5}, "problem p0 has 9 right of 4 samples"),
    "negative": ([[4, 1], [4, -1]], {"1": 0.5}, "problem p1 has -1 right of 4 samples"),
    "no samples": ([[0, 0]], {"1": 0.5}, "problem p0 has 0 right of 0 samples"),
    "H091 no problems": ([], {"1": 0.5}, "no problems"),
    "text": ([["4", 1]], {"1": 0.5}, "problem p0 has num_samples '4' and num_correct 1, not whole"),
    "true": ([[4, True]], {"1": 0.5}, "problem p0 has num_samples 4 and num_correct True, not whole"),
    "no pass@k": ([[4, 1]], None, "pass_at_k is None"),
    "pass@k above 1": ([[4, 1]], {"1": 25}, "pass_at_k is {'1': 25}"),
    "k is no number": ([[4, 1]], {"x": 0.5}, "pass_at_k is {'x': 0.5}"),
    "k is 0": ([[4, 1]], {"0": 0.5}, "pass_at_k is {'0': 0.5}"),
}


@pytest.mark.parametrize(("rows", "ks", "reason"), IMPOSSIBLE.values(), ids=IMPOSSIBLE)
def test_impossible_counts_are_refused(write, rows, ks, reason) -> None:
    path = write("a.json", counted(rows, ks))
    with pytest.raises(DataError, match=rf"a\.json: {re.escape(reason)}"):
        compare(path, path)


@pytest.mark.parametrize("accuracy", [None, "0.5", 50])
def test_an_impossible_accuracy_is_refused(write, accuracy) -> None:
    path = write("a.json", result([1]) | {"accuracy": accuracy})
    with pytest.raises(DataError, match=r"a\.json: accuracy is .*, not a share"):
        compare(path, path)


def test_a_problem_that_stands_twice_is_refused(write) -> None:
    found = counted([[4, 1], [4, 2]], {"1": 0.5})
    found["problems"][1]["prompt_id"] = "p0"
    with pytest.raises(DataError, match="problem p0 stands there twice"):
        compare(write("a.json", found), write("b.json", found))


@pytest.mark.parametrize(("count", "said"), [(2, "too few"), (5, "too few"), (6, "clear")], ids=["H092", "five", "six"])
def test_no_verdict_from_too_few_problems(write, count: int, said: str) -> None:
    a, b = (write(f"{v}.json", counted([[1, v]] * count, {"1": float(v)})) for v in (0, 1))
    found = compare(a, b)
    assert found["verdict"] == said
    few = f"(no verdict: {count} problems differ, at least 6 must)"
    assert as_lines(found)[-2].endswith("(clear)" if said == "clear" else few)


def test_command(write, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write("a.json", result([0, 4, 2, 1])), write("b.json", result([4, 4, 1, 2]))
    assert cli.main(["compare", str(a), str(b), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["wins"] == 2
    assert cli.main(["compare", str(a), str(b)]) == 0
    assert "B better on 2, worse on 1, equal on 1 of 4" in capsys.readouterr().out
    assert cli.main(["compare", str(a), "none.json"]) == 2
    assert cli.main(["compare", str(a), str(b), "--seed", "-1"]) == 2
