"""Problems, benchmarks as data, rewards: what is read, and what is refused in which words."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from s2l_ext.data.prompts import prompt_id
from s2l_ext.errors import DataError
from s2l_ext.evaluation.benchmarks import Problem, load_benchmark
from s2l_ext.evaluation.grading import Grade, grade, load_reward, reward_name
from s2l_ext.evaluation.metrics import majority_correct
from s2l_ext.evaluation.problems import read_problems

FIXTURES = Path(__file__).parent.parent / "fixtures"


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def row(text: str = "1+1=?", **changes: Any) -> dict[str, Any]:
    base = {"prompt": chat(text), "data_source": "toy_chain", "reward_model": {"ground_truth": "2"}, "ability": "Math"}
    return base | {"extra_info": {"index": 1}} | changes


def parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(each) + "\n" for each in rows))
    return path


def test_parquet(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", [row("a"), row("b", extra_info={"id": "named"})])
    first, second = read_problems([path])
    assert (first.id, second.id) == (prompt_id(chat("a")), "named")
    assert (first.ground_truth, first.data_source, first.ability) == ("2", "toy_chain", "math")
    assert read_problems([path], limit=1) == [first]


@pytest.mark.parametrize("missing", ["prompt", "data_source", "reward_model"])
def test_a_missing_column_is_named_with_those_there(tmp_path: Path, missing: str) -> None:
    rows = [row()]
    del rows[0][missing]
    path = parquet(tmp_path / "a.parquet", rows)
    with pytest.raises(DataError) as refusal:
        read_problems([path])
    words = str(refusal.value)
    assert str(path) in words and f"'{missing}' is missing" in words and "ability" in words


def test_a_problem_twice_is_refused(tmp_path: Path) -> None:
    one, two = (parquet(tmp_path / f"{name}.parquet", [row("b"), row(name)]) for name in "xy")
    with pytest.raises(DataError, match=r"y\.parquet: row 0.*x\.parquet: row 0.*--n"):
        read_problems([one, two])


def test_no_file_and_no_rows(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"--data .*none\.parquet: no such file"):
        read_problems([tmp_path / "none.parquet"])
    with pytest.raises(DataError, match="no rows"):
        read_problems([json_lines(tmp_path / "a.jsonl", [])], load_benchmark("gsm8k"))
    with pytest.raises(DataError, match=r"a\.parquet"):
        (tmp_path / "a.parquet").write_text("no parquet")
        read_problems([tmp_path / "a.parquet"])


def test_gsm8k_in_both_forms(tmp_path: Path) -> None:
    own = {"question": "How many?", "answer": "6*7=42\n#### 1,042"}
    problems = read_problems(
        [FIXTURES / "gsm8k_test_slice.jsonl", json_lines(tmp_path / "o.jsonl", [own])], load_benchmark("gsm8k")
    )
    first, last = problems[0], problems[-1]
    assert first.messages[0]["content"].endswith("give the final answer inside \\boxed{}.")
    assert first.id.startswith("gsm8k")
    assert (last.ground_truth, last.data_source) == ("1,042", "gsm8k")
    assert last.messages[0]["content"].startswith("How many?\nReason")
    reward = load_reward(reward_name(last))
    assert grade(reward, last, "so it is \\boxed{1042}").correct
    assert not grade(reward, last, "so it is \\boxed{42}").correct


def test_json_lines_need_a_benchmark(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.jsonl: JSON lines and CSV need --benchmark"):
        read_problems([json_lines(tmp_path / "a.jsonl", [{"a": 1}])])


def test_a_benchmark_of_ones_own(tmp_path: Path) -> None:
    definition = tmp_path / "mine.yaml"
    definition.write_text('data_source: mine\nprompt: "{q} {{x}}"\nanswer: a\nsystem: Be brief.\nid: n\n')
    data = json_lines(tmp_path / "a.jsonl", [{"q": "why {?", "a": 3, "n": 7}])
    (problem,) = read_problems([data], load_benchmark(str(definition)))
    assert problem.messages == [{"role": "system", "content": "Be brief."}, *chat("why {? {x}")]
    assert (problem.id, problem.ground_truth) == ("7", "3")
    with pytest.raises(DataError, match=r"a\.jsonl:1: column 'q' is missing\. Found: a"):
        json_lines(data, [{"a": 3}])
        read_problems([data], load_benchmark(str(definition)))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("prompt: x\nanswer: a\n", r"mine\.yaml\.data_source is missing"),
        ("data_source: x\nprompt: x\nanswer: a\nanswr: b\n", r"mine\.yaml\.answr: unknown key\. Did you mean .*answer"),
        ("- a\n", r"has the wrong type \(list\): it must be a block with the keys data_source, prompt"),
        ("a: [\n", "no readable YAML"),
        ('data_source: x\nprompt: "{q"\nanswer: a\n', r"expected '}'.*\(in prompt"),
        ('data_source: x\nprompt: "{q.r}"\nanswer: a\n', r"\{q\.r\} is not the name of a column"),
        ('data_source: x\nprompt: "{}"\nanswer: a\n', "not the name of a column"),
        ("data_source: x\nprompt: x\nanswer: a\nanswer_pattern: '('\n", "unterminated.*answer_pattern"),
        ("data_source: x\nprompt: 3\nanswer: a\n", r"mine\.yaml\.prompt=3 has the wrong type \(int\): it must be text"),
        (
            "data_source: x\nprompt: x\nanswer: a\nwrong: b\n",
            r"yaml\.wrong='b' has the wrong type .*must be a list",
        ),
        ("data_source: x\nprompt: x\nanswer: a\nwrong: [3]\n", r"mine\.yaml\.wrong\[0\]=3 has the wrong type"),
        ("data_source: x\nprompt: x\nanswer: a\nrename: {a: 3}\n", "3 is no name of a column"),
        (
            "data_source: x\nprompt: x\nanswer: a\nrename: [b]\n",
            r"yaml\.rename=\['b'\] has the .*must be a mapping",
        ),
        (
            "data_source: x\nprompt: x\nanswer: a\ntests: mbpp\n",
            r"yaml\.tests='mbpp' .* from: humaneval, livecode",
        ),
        ("data_source: x\nprompt: x\nanswer: a\ntests: humaneval\nwrong: [b]\n", "wrong and tests cannot both"),
    ],
)
def test_a_bad_definition_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=reason):
        load_benchmark(str(path))


def test_an_unknown_benchmark_lists_the_known() -> None:
    with pytest.raises(DataError, match=r"gsm9k: neither a built-in benchmark \(aime24, .*gsm8k, .*olympiadbench\)"):
        load_benchmark("gsm9k")


# ---- rewards ------------------------------------------------------------------------------------------------------


def a_problem(source: str = "toy_chain", ability: str = "", truth: Any = "2") -> Problem:
    return Problem("p", "a.parquet: row 3", chat("1+1=?"), source, truth, {}, ability)


@pytest.mark.parametrize(
    ("source", "ability", "module"),
    [
        ("toy_chain_tier3", "math", "toy"),
        ("gsm8k", "", "math"),
        ("openr1_math", "", "math"),
        ("humaneval", "code", "code"),
        ("mine", "math", "math"),
        ("mine", "code", "code"),
    ],
)
def test_the_data_source_chooses_the_reward(source: str, ability: str, module: str) -> None:
    assert reward_name(a_problem(source, ability)) == f"s2l_ext.rewards.{module}:compute_score"


def test_an_unknown_data_source_is_refused() -> None:
    with pytest.raises(DataError, match=r"row 3: no reward is known for data_source 'mine'.*--reward"):
        reward_name(a_problem("mine", "general"))
    assert reward_name(a_problem("mine"), "x:y") == "x:y"


@pytest.mark.parametrize("name", ["nowhere.at_all:f", "s2l_ext.rewards.toy:nothing", "s2l_ext.rewards.toy:BOXED", ":f"])
def test_a_reward_that_is_not_there_is_refused(name: str) -> None:
    with pytest.raises(DataError, match=f"--reward {name}: "):
        load_reward(name)


@pytest.mark.parametrize(
    ("returned", "expected"),
    [
        (1, Grade(1.0, True, "7")),
        (0.5, Grade(0.5, False, "7")),
        ({"score": -1.0, "acc": True}, Grade(-1.0, True, "7")),
        ({"score": 2.5, "acc": 0.75}, Grade(2.5, False, "7")),
        ({"score": 1.5, "acc": 0.0, "extracted": " a  b"}, Grade(1.5, False, "a b")),
        ({"score": 0.0, "acc": 0.0, "extracted": "a", "timed_out": 1.0}, Grade(0.0, False, "a", timed_out=True)),
    ],
)
def test_what_a_reward_may_return(returned: Any, expected: Grade) -> None:
    assert grade(lambda **call: returned, a_problem(), "\\boxed{7}") == expected


CUT = "<think>\nmaybe \\boxed{5}, let me check"


@pytest.mark.parametrize(
    ("returned", "ability", "text", "answer"),
    [
        ({"score": 0.0, "extracted": ""}, "math", CUT, None),
        ({"score": 0.0, "extracted": ""}, "math", "\\boxed{5}", None),
        (0.0, "math", CUT, None),
        (1.0, "math", "<think>\\boxed{4}</think>\\boxed{5}", "5"),
        ({"score": 1.0, "tests_total": 3}, "", "#### 5", None),
        (1.0, "code", "#### 5", None),
    ],
)
def test_the_answer_that_votes_is_none_of_the_thinking_or_of_a_program(
    returned: Any, ability: str, text: str, answer: str | None
) -> None:
    assert grade(lambda **call: returned, a_problem(ability=ability), text).answer == answer


def test_a_sample_that_was_cut_short_takes_no_part_in_the_vote() -> None:
    reward = load_reward("math")
    problem = a_problem("math", truth="5")
    grades = [grade(reward, problem, text) for text in (CUT, "\\boxed{5}", "\\boxed{5}", "\\boxed{6}")]
    assert [each.answer for each in grades] == [None, "5", "5", "6"]
    assert majority_correct([each.answer for each in grades], [each.correct for each in grades])


def test_a_reward_is_called_as_verl_calls_it() -> None:
    seen: dict[str, Any] = {}

    def reward(**call: Any) -> float:
        seen.update(call)
        return 0.0

    grade(reward, a_problem(), "text")
    assert seen == {"data_source": "toy_chain", "solution_str": "text", "ground_truth": "2", "extra_info": {}}


@pytest.mark.parametrize("broken", [lambda **call: 1 / 0, lambda **call: {"acc": 1}, lambda **call: None])
def test_a_reward_that_fails_is_named(broken: Any) -> None:
    with pytest.raises(DataError, match=r"row 3: the reward .*test_evaluation_inputs:.* failed"):
        grade(broken, a_problem(), "text")


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (float("nan"), "score=nan, acc=None"),
        ({"score": float("-inf"), "acc": 1.0}, r"score=-inf, acc=1\.0"),
        ({"score": 1.0, "acc": 7.0}, r"score=1\.0, acc=7\.0"),
        ({"score": 1.0, "acc": -0.25}, r"score=1\.0, acc=-0\.25"),
        ({"score": 1.0, "acc": float("nan")}, r"score=1\.0, acc=nan"),
    ],
)
def test_a_grade_that_cannot_be_is_refused(returned: Any, words: str) -> None:
    with pytest.raises(DataError, match=rf"row 3: the reward .*<lambda> returned {words}: expected a finite score"):
        grade(lambda **call: returned, a_problem(), "text")


def test_the_digest_of_weights_is_remembered_until_they_change(tmp_path: Path, monkeypatch) -> None:
    from s2l_ext.evaluation import model_folder
    from s2l_ext.utils import digests

    monkeypatch.setenv("S2L_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(b"{}")
    read: list[str] = []
    real = model_folder.sha256_file
    for module in (model_folder, digests):
        monkeypatch.setattr(module, "sha256_file", lambda path: read.append(path.name) or real(path))
    first = model_folder.model_digest(tmp_path)
    assert model_folder.model_digest(tmp_path) == first
    assert read == ["config.json", "model.safetensors", "config.json"]
    (tmp_path / "model.safetensors").write_bytes(b"other weights")
    assert model_folder.model_digest(tmp_path) != first
