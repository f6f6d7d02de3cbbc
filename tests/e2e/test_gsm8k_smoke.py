"""Real GSM8K prompts through conversion, chat template, both models, math-verify and the update."""

from pathlib import Path

import pytest

from s2l_ext.data import gsm8k

FIXTURES = Path(__file__).parent.parent / "fixtures"


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    data = tmp_path_factory.mktemp("gsm8k")
    gsm8k.convert([FIXTURES / "gsm8k_train_slice.jsonl", FIXTURES / "gsm8k_test_slice.jsonl"], data)
    return launch("s2l_po/gsm8k_smoke", f"gsm8k_dir={data}", f"trainer.validation_data_dir={data}/val").wait(), data


def test_two_steps_with_the_schedule(run) -> None:
    launched, _ = run
    assert [launched.steps()[step]["s2l/explorer/slots"] for step in (1, 2)] == [4, 0]


def test_prompts_are_real_and_responses_used_the_room(run) -> None:
    launched, _ = run
    metrics = launched.steps()[1]
    assert metrics["prompt_length/mean"] > 150
    assert metrics["prompt_length/max"] <= 768
    assert 1 <= metrics["response_length/max"] <= 128


def test_every_row_was_graded(run) -> None:
    launched, _ = run
    for step in (1, 2):
        accuracies = [
            v for k, v in launched.steps()[step].items() if k.startswith("s2l/source/") and k.endswith("/acc_mean")
        ]
        assert accuracies and all(0 <= value <= 1 for value in accuracies)


def test_validation_is_graded_by_math_verify(run) -> None:
    launched, data = run
    metrics = {k: v for line in launched.lines() for k, v in line["data"].items()}
    assert 0 <= metrics["val-core/gsm8k/acc/mean@1"] <= 1
    dumped = (data / "val" / "2.jsonl").read_text()
    assert '"extracted"' in dumped and '"format_ok"' in dumped
