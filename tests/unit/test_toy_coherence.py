"""Which steps of a toy response follow from the ones before."""

from pathlib import Path

import numpy as np
import pytest

from s2l_ext.evaluation.samples import Sample
from s2l_ext.studies.diversity.measure import _steps
from s2l_ext.studies.diversity.sets import RowSet
from s2l_ext.toy.coherence import steps_that_follow
from s2l_ext.toy.tasks import response, sample
from s2l_ext.toy.tokenizer import build_tokenizer, prompt_ids

QUESTION = "<|im_start|>user\n5-6+4*3=?<|im_end|>\n"


@pytest.mark.parametrize("tier", [0, 1, 2, 3])
def test_every_step_of_a_trace_follows(tier: int) -> None:
    for problem in sample(tier, "train", 20, 0):
        followed, steps = steps_that_follow(problem.question, problem.trace)
        assert followed == steps == sum(len(chain.split(";")) for chain in problem.steps)
        assert steps_that_follow(problem.question, response("", problem.answer)) == (0, 0)


@pytest.mark.parametrize(
    ("thought", "counts"),
    [
        ("5-6=9;9+4=3;3*3=9", (3, 3)),
        ("5-6=8;8+4=2;2*3=6", (2, 3)),  # one wrong result, and what is made of it follows
        ("5-6=9;8+4=2;2*3=6", (2, 3)),  # does not take up the result before
        ("5-6=9;9*4=6;6*3=8", (2, 3)),  # another operation than the question's
        ("5-6=9;9+4=3;3*3=9;9+1=0", (3, 4)),  # more than was asked
        ("5-6=9;nine;3*3=9", (1, 3)),  # nothing follows from what cannot be read
        ("5-6=9", (1, 1)),
        ("5-6=9,9+4=3", (1, 2)),  # a second chain that the question does not have
    ],
)
def test_by_hand(thought: str, counts: tuple[int, int]) -> None:
    assert steps_that_follow(QUESTION, f"<think>{thought}</think>\\boxed{{9}}") == counts
    assert steps_that_follow(QUESTION, f"<think>{thought}") == counts


def test_two_chains_and_no_question() -> None:
    assert steps_that_follow("3+4*2,7-5+1=?", "<think>3+4=7;7*2=4,7-5=2;2+1=4</think>") == (3, 4)
    assert steps_that_follow("What is two and two?", "<think>2+2=4</think>") == (0, 0)


def test_steps_of_a_set_are_counted_by_problem() -> None:
    """The prompt is read from its tokens, as the chat template made them."""
    thoughts = ["5-6=9;9+4=3", "5-6=9;9+4=2", ""]
    texts = [f"<think>{thought}</think>\\boxed{{3}}" for thought in thoughts]
    rows = [Sample("a", number, [1], [1], text, False, 0.0, False, None) for number, text in enumerate(texts)]
    prompt = np.array(prompt_ids("5-6+4=?"), np.int32)
    drawn = RowSet("a", "a", "learner", Path("x"), {}, {"p": prompt}, {"p": rows})
    assert _steps(drawn, build_tokenizer(), steps_that_follow) == ([3], [4])
