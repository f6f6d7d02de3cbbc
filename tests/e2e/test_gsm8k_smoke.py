"""All methods on real GSM8K prompts with Qwen3's own tokenizer and vocabulary, on tiny random weights."""

from pathlib import Path

import pytest

from s2l_ext.data import gsm8k

FIXTURES = Path(__file__).parent.parent / "fixtures"
LOGGERS = ("console", "tensorboard", "wandb")


VOCABULARY_ROWS, PROMPTS, RESPONSE = 151_936, 4, 48
SHORT = (  # a token costs a sort of the whole vocabulary
    f"data.train_batch_size={PROMPTS}",
    f"data.max_response_length={RESPONSE}",
    "data.val_max_samples=4",
    f"actor_rollout_ref.actor.ppo_mini_batch_size={PROMPTS}",
)
ALL_METHODS = (
    "+s2l.guidance={alpha: 0.25, min_continuation: 16, length: {initial: 24, max_length: 32}}",
    "+s2l.kl={beta: 0.02}",
    "+s2l.curriculum={sigma: 0.35}",
    "actor_rollout_ref.actor.use_kl_loss=true",
)


@pytest.fixture(scope="module")
def models(real_tokenizer, tmp_path_factory) -> dict[str, Path]:
    """Qwen3's tokenizer and number of vocabulary rows, on tiny random weights."""
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM, set_seed

    folders = {}
    for seed, (name, width) in enumerate({"learner": 64, "explorer": 32}.items()):
        set_seed(seed)
        folder = folders[name] = tmp_path_factory.mktemp("qwen3") / name
        tokenizer = AutoTokenizer.from_pretrained(real_tokenizer("qwen3"))
        config = Qwen3Config(
            vocab_size=VOCABULARY_ROWS,
            hidden_size=width,
            intermediate_size=2 * width,
            head_dim=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
        Qwen3ForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folders


@pytest.fixture(scope="module")
def run(launch, models, tmp_path_factory):
    data = tmp_path_factory.mktemp("gsm8k")
    gsm8k.Gsm8k().convert([FIXTURES / "gsm8k_train_slice.jsonl", FIXTURES / "gsm8k_test_slice.jsonl"], data)
    own = (f"gsm8k_dir={data}", f"trainer.validation_data_dir={data}/val", f"trainer.logger=[{','.join(LOGGERS)}]")
    paths = (
        f"actor_rollout_ref.model.path={models['learner']}",
        f"s2l.explorer.model_path={models['explorer']}",
        "data.max_prompt_length=384",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORBOARD_DIR", str(data / "tensorboard"))
        patch.setenv("WANDB_DIR", str(data))
        patch.setenv("WANDB_MODE", "offline")
        launched = launch("s2l_po/gsm8k_smoke", *own, *paths, *SHORT, *ALL_METHODS)
    return launched.wait(), data


def test_two_steps_with_the_schedule(run) -> None:
    launched, _ = run
    assert [launched.steps()[step]["s2l/explorer/rollouts_per_group"] for step in (1, 2)] == [4, 0]


def test_guidance_is_cut_at_its_length_in_tokens(run) -> None:
    launched, _ = run
    second = launched.steps()[2]
    assert second["s2l/guidance/guided_rows"] == PROMPTS, "one of four sessions for each prompt"
    assert 0 < second["s2l/guidance/applied_min"] <= second["s2l/guidance/applied_max"] <= 24


def test_beta_follows_the_accuracy_of_models_that_are_never_right(run) -> None:
    launched, _ = run
    assert [launched.steps()[step]["s2l/kl/accuracy"] for step in (1, 2)] == [0, 0]
    assert [launched.steps()[step]["s2l/kl/beta"] for step in (1, 2)] == pytest.approx([0.01, 0.01])


def test_prompts_are_real_and_responses_used_the_room(run) -> None:
    launched, _ = run
    metrics = launched.steps()[1]
    assert 60 < metrics["prompt_length/mean"] < 384, "tokens, not characters"
    assert metrics["prompt_length/max"] <= 384
    assert 1 <= metrics["response_length/max"] <= RESPONSE


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
