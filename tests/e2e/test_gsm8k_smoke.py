"""Real GSM8K prompts through conversion, chat template, both models, math-verify and the update."""

from pathlib import Path

import pytest

from s2l_ext.data import gsm8k

FIXTURES = Path(__file__).parent.parent / "fixtures"
LOGGERS = ("console", "tensorboard", "wandb")


@pytest.fixture(scope="module")
def run(launch, tmp_path_factory):
    data = tmp_path_factory.mktemp("gsm8k")
    gsm8k.Gsm8k().convert([FIXTURES / "gsm8k_train_slice.jsonl", FIXTURES / "gsm8k_test_slice.jsonl"], data)
    own = (f"gsm8k_dir={data}", f"trainer.validation_data_dir={data}/val", f"trainer.logger=[{','.join(LOGGERS)}]")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_DIR", str(data / "tensorboard"))
        patch.setenv("WANDB_DIR", str(data))
        patch.setenv("WANDB_MODE", "offline")
        launched = launch("s2l_po/gsm8k_smoke", *own)
    return launched.wait(), data


def test_two_steps_with_the_schedule(run) -> None:
    launched, _ = run
    assert [launched.steps()[step]["s2l/explorer/rollouts_per_group"] for step in (1, 2)] == [4, 0]


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


def test_metrics_reach_tensorboard_and_wandb_through_verl(run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    _, data = run
    events = EventAccumulator(str(data / "tensorboard")).Reload()
    assert [(point.step, point.value) for point in events.Scalars("s2l/explorer/rollouts_per_group")] == [
        (1, 4.0),
        (2, 0.0),
    ]
    (offline,) = (data / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"s2l/explorer/rollouts_per_group" in offline.read_bytes()
