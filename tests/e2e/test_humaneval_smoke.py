"""Real HumanEval prompts through conversion, guidance, both halves of a group, the sandbox and the update."""

import json
from pathlib import Path

import pytest

from s2l_ext.data import humaneval

FIXTURES = Path(__file__).parent.parent / "fixtures"
PROMPTS, GUIDED, GROUP = 4, 2, 4


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    """Tasks that the toy's tokenizer can spell and whose programs fit: ASCII, short."""
    data = tmp_path_factory.mktemp("humaneval")
    tasks = [json.loads(line) for line in (FIXTURES / "humaneval.jsonl").read_text().splitlines()]
    short = [
        t for t in tasks if t["prompt"].isascii() and len(t["prompt"]) < 320 and len(t["canonical_solution"]) < 120
    ]
    (data / "tasks.jsonl").write_text("\n".join(map(json.dumps, short[:12])))
    humaneval.HumanEval(trace="canonical").convert(data / "tasks.jsonl", data)
    return launch("g2rpo_a/humaneval_smoke", f"humaneval_dir={data}", "trainer.total_training_steps=1").wait()


def test_canonical_programs_are_judged_right_in_the_reward_loop(run) -> None:
    """A program is right although whatever the toy model writes follows it; one or two may run into its own code."""
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/guided_rows"] == PROMPTS * GUIDED
        assert metrics["s2l/guidance/acc_guided"] >= 0.5


def test_what_the_toy_model_writes_alone_is_judged_wrong(run) -> None:
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/acc_unguided"] == 0.0
        assert metrics["s2l/guidance/unguided_groups_with_signal"] == 0.0
        assert metrics["s2l/guidance/groups_with_signal"] > 0.5


def test_the_update_read_none_of_the_program_handed_over(run) -> None:
    assert sorted(run.steps()) == [1]
    for metrics in run.steps().values():
        assert metrics["s2l/guidance/prefix_tokens"] > 1000
        assert metrics["s2l/guidance/prefix_tokens_in_loss"] == 0
        assert metrics["actor/grad_norm"] > 0
