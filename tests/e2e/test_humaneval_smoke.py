"""Real HumanEval prompts through conversion, guidance, both halves of a group, the sandbox and the update."""

import json
from pathlib import Path

import pytest

from s2l_ext.data import humaneval

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROMPTS, GUIDED, GROUP = 4, 2, 4


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    """Tasks that the toy's tokenizer can spell, ASCII, and whose whole trace fits: a guided row gets its program."""
    data = tmp_path_factory.mktemp("humaneval")
    tasks = [json.loads(line) for line in (FIXTURES / "humaneval.jsonl").read_text().splitlines()]
    short = [t for t in tasks if t["prompt"].isascii() and len(t["prompt"]) < 320 and len(_program(t)) < 330]
    (data / "tasks.jsonl").write_text("\n".join(map(json.dumps, short[:12])))
    humaneval.HumanEval(trace="canonical").convert(data / "tasks.jsonl", data)
    keep = ("trainer.total_training_steps=1", f"s2l.rollout.log_groups={PROMPTS}")
    return launch("g2rpo_a/humaneval_smoke", f"humaneval_dir={data}", *keep).wait()


def _program(task: dict) -> str:
    """A trace holds it twice, with 71 characters around."""
    return (task["prompt"] + task["canonical_solution"]).strip()


@pytest.fixture(scope="module")
def rows(run, saved_rows) -> list[dict]:
    return saved_rows.rows_by_step(run)[1]


def test_canonical_programs_are_judged_right_in_the_reward_loop(run, rows) -> None:
    """Whatever the toy model writes after one, unless it closes a thinking: the program is then a part of that."""
    guided = [row for row in rows if row["guidance"]]
    right = ["</think>" not in row["response"] for row in guided]
    assert len(guided) == run.steps()[1]["s2l/guidance/guided_rows"] == PROMPTS * GUIDED
    assert all(row["guidance"].endswith("```\n") for row in guided)
    assert any(right) and [row["acc"] for row in guided] == right


def test_what_the_toy_model_writes_alone_is_judged_wrong(run, rows, saved_rows) -> None:
    metrics = run.steps()[1]
    groups = saved_rows.groups(rows).values()
    assert metrics["s2l/guidance/acc_unguided"] == 0.0
    assert metrics["s2l/guidance/unguided_groups_with_signal"] == 0.0
    with_signal = [any(row["acc"] for row in group if row["guidance"]) for group in groups]
    assert metrics["s2l/guidance/groups_with_signal"] == pytest.approx(sum(with_signal) / PROMPTS)


def test_the_update_read_none_of_the_program_handed_over(run) -> None:
    assert sorted(run.steps()) == [1]
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/prefix_tokens"] > 1000
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        assert metrics["actor/grad_norm"] > 0
