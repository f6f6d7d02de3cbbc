import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from s2l_ext.rewards.toy import compute_score
from s2l_ext.toy.tasks import sample


@pytest.mark.parametrize(
    ("solution", "truth", "score", "careful"),
    [
        ("<think>5-6=9</think>\\boxed{9}", "9", 1.0, 1.0),
        ("<think></think>\\boxed{9}", "9", 1.0, 0.0),
        ("<think> \n</think>\\boxed{8}", "9", 0.0, 0.0),
        ("\\boxed{1} no, \\boxed{9}", "9", 1.0, 0.0),
        ("\\boxed{9} no, \\boxed{1}", "9", 0.0, 0.0),
        ("<think>1+1=2</think>\\boxed{4,3}", "4,3", 1.0, 1.0),
        ("\\boxed{3,4}", "4,3", 0.0, 0.0),
        ("\\boxed{09}", "9", 0.0, 0.0),
        ("\\boxed{9", "9", 0.0, 0.0),
        ("\\boxed{}", "", 1.0, 0.0),
        ("9", "9", 0.0, 0.0),
        ("<think>endless 1+1=2", "2", 0.0, 0.0),
        ("", "9", 0.0, 0.0),
    ],
)
def test_score_and_carefulness(solution: str, truth: str, score: float, careful: float) -> None:
    assert compute_score("toy_chain", solution, truth) == {"score": score, "acc": score, "careful": careful}


def test_every_trace_scores_one_and_is_careful() -> None:
    for tier in range(4):
        for problem in sample(tier, "train", 20, 0):
            full = {"score": 1.0, "acc": 1.0, "careful": 1.0}
            assert compute_score("toy_chain", problem.trace, problem.answer, {"index": 1}, spare=2) == full


@given(st.text())
def test_garbage_never_raises_and_scores_nothing(text: str) -> None:
    assert compute_score("toy_chain", text, "not there")["score"] == 0.0


def test_a_missing_response_scores_nothing() -> None:
    assert compute_score("toy_chain", None, "9")["score"] == 0.0  # type: ignore[arg-type]


def test_reward_imports_no_heavy_package() -> None:
    code = "import sys, s2l_ext.rewards.toy; print([m for m in ('torch', 'transformers', 'verl') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
