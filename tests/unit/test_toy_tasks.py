import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from s2l_ext.errors import DataError
from s2l_ext.toy import tasks


@pytest.mark.parametrize(
    ("expression", "steps", "value"),
    [
        ("5-6+4*3", ["5-6=9", "9+4=3", "3*3=9"], 9),
        ("2+3*4", ["2+3=5", "5*4=0"], 0),
        ("0-1", ["0-1=9"], 9),
        ("3^8^5", ["3^8=8", "8^5=8"], 8),
        ("7", [], 7),
    ],
)
def test_chains_are_evaluated_left_to_right_modulo_ten(expression: str, steps: list[str], value: int) -> None:
    assert tasks.solve(expression) == (steps, value)


def test_two_chains_have_two_answers_and_one_trace() -> None:
    problem = tasks.from_question("3+4*2,7-5+1=?")
    assert problem.answer == "4,3"
    assert problem.trace == "<think>3+4=7;7*2=4,7-5=2;2+1=3</think>\\boxed{4,3}"


@pytest.mark.parametrize("number", sorted(tasks.TIERS))
def test_every_problem_fits_its_tier(number: int) -> None:
    tier = tasks.TIERS[number]
    rng = random.Random(number)
    lengths = set()
    for _ in range(300):
        chains = tasks.draw(rng, tier).question.removesuffix("=?").split(",")
        assert len(chains) == tier.chains
        for chain in chains:
            assert set(chain[1::2]) <= set(tier.operators)
            assert tier.required in chain
            assert chain[0::2].isdigit()
            lengths.add(len(chain) // 2)
    assert lengths == set(tier.operations)


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(seeds=st.tuples(*[st.integers(0, 2**40)] * 3), tier=st.sampled_from(sorted(tasks.TIERS)))
def test_splits_share_no_question_whatever_the_seeds(seeds: tuple[int, int, int], tier: int) -> None:
    drawn = [
        {problem.question for problem in tasks.sample(tier, split, 60, seed)}
        for split, seed in zip(tasks.SPLITS, seeds, strict=True)
    ]
    assert [len(questions) for questions in drawn] == [60, 60, 60]
    assert len(set.union(*drawn)) == 180


def test_pretraining_never_sees_val_or_test() -> None:
    problems = tasks.stream(random.Random(3), tasks.TIERS[0])
    assert {tasks.split_of(next(problems).question) for _ in range(500)} == {"train"}


def test_split_sizes_are_about_80_10_10() -> None:
    splits = [tasks.split_of(tasks.draw(random.Random(i), tasks.TIERS[0]).question) for i in range(2000)]
    assert 0.76 < splits.count("train") / 2000 < 0.84
    assert 0.07 < splits.count("val") / 2000 < 0.13


def test_same_seed_same_problems_other_seed_others() -> None:
    assert tasks.sample(0, "train", 20, 5) == tasks.sample(0, "train", 20, 5)
    assert tasks.sample(0, "train", 20, 5) != tasks.sample(0, "train", 20, 6)


def test_the_split_of_a_question_never_changes() -> None:
    assert [tasks.split_of(f"{i}+1*2-3=?") for i in range(10)] == [
        "train",
        "train",
        "train",
        "val",
        "train",
        "train",
        "train",
        "val",
        "train",
        "val",
    ]
    assert tasks.problem_id("1+1*2-3=?") == 33826395692518


def test_row_is_in_verls_layout() -> None:
    problem = tasks.from_question("5-6+4*3=?")
    row = tasks.to_row(problem, 0, "val")
    assert row["data_source"] == "toy_chain"
    assert row["prompt"] == [{"role": "user", "content": "5-6+4*3=?"}]
    assert row["reward_model"] == {"style": "rule", "ground_truth": "9"}
    assert row["extra_info"]["split"] == "val"
    assert row["extra_info"]["index"] == tasks.problem_id("5-6+4*3=?")
    assert "trace" not in row
    assert row["extra_info"]["trace"] == "<think>5-6=9;9+4=3;3*3=9</think>\\boxed{9}"
    assert tasks.to_row(problem, 2, "val")["data_source"] == "toy_chain_tier2"


def test_ids_are_different_and_exact_in_json_numbers() -> None:
    ids = [tasks.problem_id(problem.question) for problem in tasks.sample(0, "train", 500, 0)]
    assert len(set(ids)) == 500
    assert max(ids) < 2**53


def test_unknown_tier_split_and_too_many_problems_are_refused() -> None:
    with pytest.raises(DataError, match=r"tier=9.*0, 1, 2, 3"):
        tasks.sample(9, "train", 1, 0)
    with pytest.raises(DataError, match=r"split='dev'.*train, val, test"):
        tasks.sample(0, "dev", 1, 0)


def test_a_tier_that_is_used_up_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tasks.TIERS, 7, tasks.Tier("tiny", (1,), operators="+"))
    monkeypatch.setattr(tasks, "MAX_DRAWS_PER_PROBLEM", 20)
    with pytest.raises(DataError, match="count=200"):
        tasks.sample(7, "train", 200, 0)
