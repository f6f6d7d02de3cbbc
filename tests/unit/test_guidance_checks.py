"""Rules of ``s2l.guidance`` on the composed toy recipe, and what preflight says of traces."""

import json

import pytest

from s2l_ext.data.prompts import PromptTable
from s2l_ext.errors import DataError
from s2l_ext.methods.guidance.config import AdaptiveLength, GuidanceConfig
from s2l_ext.methods.guidance.trace_checks import check_traces, read_teacher_rollouts
from s2l_ext.methods.registry import accuracy_settings, parse_s2l

SCHEDULES = ("constant", "linear", "concave", "stepwise")


@pytest.fixture(scope="module")
def recipe(rules):
    return rules("g2rpo_a/toy")


@pytest.mark.slow
def test_the_recipe_passes_without_a_warning(recipe) -> None:
    assert recipe.check() == []


def test_defaults_are_the_paper() -> None:
    length = GuidanceConfig().length
    assert (length.type, length.initial, length.max_length, length.window) == ("adaptive", 3072, 3072, 2)
    assert GuidanceConfig().loss_on_guidance is False and GuidanceConfig().stop_before_answer is True


@pytest.mark.slow
@pytest.mark.parametrize("alpha", [-0.1, 1.5])
def test_alpha_outside_zero_to_one_names_key_and_value(recipe, alpha: float) -> None:
    assert recipe.refused(s2l__guidance__alpha=alpha).startswith(f"s2l.guidance.alpha={alpha} is out of range")


def test_length_beyond_the_response_budget_says_the_room(recipe) -> None:
    message = recipe.refused(s2l__guidance__length__max_length=49)
    assert (
        "s2l.guidance.length.max_length=49" in message
        and "is 48" in message
        and "data.max_response_length=64" in message
    )


@pytest.mark.parametrize("kind", SCHEDULES)
def test_a_length_that_never_grows_needs_room_for_its_first_value_only(recipe, kind: str) -> None:
    settings = {"s2l__guidance__length__type": kind, "s2l__guidance__length__max_length": 3072}
    assert recipe.check(s2l__guidance__length__initial=48, **settings) == []
    message = recipe.refused(s2l__guidance__length__initial=49, **settings)
    assert message.startswith("s2l.guidance.length.initial=49 is longer than the response budget")


@pytest.mark.parametrize("kind", ["adaptive", "additive", *SCHEDULES])
def test_every_type_keeps_to_max_length(recipe, kind: str) -> None:
    settings = {"s2l__guidance__length__type": kind, "s2l__guidance__length__max_length": 30}
    assert recipe.check(s2l__guidance__length__initial=30, **settings) == []
    message = recipe.refused(s2l__guidance__length__initial=31, **settings)
    assert message.startswith("s2l.guidance.length.initial=31 is above s2l.guidance.length.max_length=30")


def test_no_room_at_all(recipe) -> None:
    message = recipe.refused(s2l__guidance__min_continuation=64)
    assert "s2l.guidance.min_continuation=64 leaves nothing of data.max_response_length=64" in message


def test_engine_that_cannot_hold_prompt_and_response(recipe) -> None:
    message = recipe.refused(actor_rollout_ref__rollout__max_model_len=100)
    assert "max_model_len=100" in message and "128" in message


def test_where_no_length_is_given_the_models_positions_must_hold_both(recipe) -> None:
    """512 + 4,096 tokens; Qwen2.5-Math has 4,096 positions, which may be told to be more."""
    settings = {
        "actor_rollout_ref__rollout__max_model_len": None,
        "actor_rollout_ref__model__path": "Qwen/Qwen2.5-Math-7B",
        "data__max_prompt_length": 512,
        "data__max_response_length": 4096,
    }
    assert recipe.refused(**settings).startswith(
        "actor_rollout_ref.rollout.max_model_len=null, the 4096 positions of Qwen/Qwen2.5-Math-7B, is below "
        "data.max_prompt_length + data.max_response_length = 4608: a guided prompt could fill it."
    )
    told = "actor_rollout_ref__model__override_config__max_position_embeddings"
    for fits in ({told: 4608}, {"data__max_response_length": 3584}):
        recipe.check(**settings | fits)


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("adaptive", "delta", 5),
        ("additive", "averaging", "disjoint_windows"),
        ("linear", "power", 3.0),
        ("constant", "window", 3),
    ],
)
def test_keys_that_the_type_does_not_read_are_refused(recipe, kind: str, key: str, value: object) -> None:
    settings = {"s2l__guidance__length__type": kind, f"s2l__guidance__length__{key}": value}
    message = recipe.refused(**settings)
    assert message.startswith(f"s2l.guidance.length.{key}: type={kind} does not have this key, type=")


def test_window_of_the_authors_code(recipe) -> None:
    settings = {"s2l__guidance__length__averaging": "disjoint_windows", "s2l__guidance__length__window": 3}
    assert recipe.refused(**settings).startswith("s2l.guidance.length: window=3")


def test_unguided_signal_needs_unguided_sessions(recipe) -> None:
    message = recipe.refused(s2l__guidance__alpha=1.0, s2l__guidance__length__estimate_from="learner_unguided")
    assert "all 8 sessions of a group are guided" in message


def test_bypass_mode_has_no_old_log_probs_for_guidance_in_the_loss(recipe) -> None:
    bypass = {"algorithm__rollout_correction__bypass_mode": True}
    message = recipe.refused(s2l__guidance__loss_on_guidance=True, **bypass)
    assert "algorithm.rollout_correction.bypass_mode=True with s2l.guidance.loss_on_guidance=True" in message
    assert recipe.check(**bypass) == []  # masked guidance is not read


@pytest.mark.parametrize(("key", "value"), [("rollout_is", "token"), ("rollout_rs", "seq_mean_k1")])
def test_other_corrections_of_verls_pass_with_guidance_in_the_loss(recipe, key: str, value: str) -> None:
    """They see ratio 1 on guidance tokens: tests/contract/test_guidance_steps.py."""
    settings = {"s2l__guidance__loss_on_guidance": True, f"algorithm__rollout_correction__{key}": value}
    assert recipe.check(**settings, algorithm__rollout_correction__rollout_rs_threshold="0.9_1.1") == []


@pytest.mark.slow
def test_alpha_zero_is_said(recipe) -> None:
    assert "no session is guided" in recipe.check(s2l__guidance__alpha=0.0)[0]


def test_adaptive_lengths_need_accuracy(configured) -> None:
    cfg = configured("expo/toy")
    assert accuracy_settings(parse_s2l({"guidance": {}}), cfg) == ["s2l.guidance.length.type=adaptive"]
    assert accuracy_settings(parse_s2l({"guidance": {"length": {"type": "linear"}}}), cfg) == []


# ---- traces -------------------------------------------------------------------------------------------------------

GOOD = "<think>1+1=2</think>\\boxed{2}"


class Characters:
    """A tokenizer whose tokens are characters; knows no ``é``."""

    def encode(self, text, add_special_tokens):
        return [ord(character) if character != "é" else ord("?") for character in text]

    def decode(self, ids):
        return "".join(map(chr, ids))


def look(*traces: object, **settings: object) -> list[str]:
    table = PromptTable(["extra_info"], lambda name: [{"trace": trace} for trace in traces])
    return check_traces(table, GuidanceConfig(**settings), Characters())


def test_good_traces_pass() -> None:
    assert look(GOOD, GOOD) == []


def test_traces_that_hand_the_answer_over_are_counted() -> None:
    """Of three, "186" stands in the first 20 characters of one; 7 characters hold none; cut at the answer, none."""
    traces = [
        "3 and 150 + 36 = 186, \\boxed{186}",
        "first we add some numbers: 186 is \\boxed{186}",
        "what else could it be, \\boxed{3}",
    ]
    rows = {
        "extra_info": [{"trace": t} for t in traces],
        "reward_model": [{"ground_truth": t} for t in ("186", "186", "3")],
    }
    table = PromptTable(list(rows), rows.__getitem__)

    def warned(initial: int, stop: bool) -> list[str]:
        guidance = GuidanceConfig(stop_before_answer=stop, length=AdaptiveLength(initial=initial))
        return check_traces(table, guidance, Characters())

    (warning,) = warned(20, stop=False)
    assert "s2l.guidance.length.initial=20" in warning and "in 1 of 3 rows (33.3%)" in warning
    assert "stop_before_answer=true" in warning
    assert warned(7, stop=False) == [] and warned(100, stop=True) == []
    (whole,) = warned(100, stop=False)
    assert "in 3 of 3 rows" in whole


def test_rows_without_a_usable_trace_are_counted_by_reason() -> None:
    with pytest.raises(DataError) as refusal:
        look(GOOD, None, "  ", "The answer is \\boxed{2}", 7)
    message = str(refusal.value)
    assert "4 of 5 rows cannot guide" in message and "the first is row 1" in message and "skip_guidance" in message
    for reason in ("2 have no trace", "1 have a trace that holds the answer only", "1 have a trace that is int"):
        assert reason in message


def test_policy_skip_warns_with_the_count_and_refuses_data_without_any_trace() -> None:
    (warning,) = look(GOOD, None, missing_trace="skip_guidance")
    assert "1 of 2 rows cannot guide" in warning and "unguided" in warning
    with pytest.raises(DataError, match="2 of 2 rows"):
        look(None, "", missing_trace="skip_guidance")


def test_teacher_rollouts_are_the_first_right_answers(tmp_path, recipe) -> None:
    rows = [("p1", GOOD, 0), ("p1", "second " + GOOD, 1.0), ("p1", "third " + GOOD, 1), ("p2", GOOD, 0.5)]
    path = tmp_path / "rollouts.jsonl"
    lines = [{"prompt_id": name, "response": response, "acc": acc} for name, response, acc in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert read_teacher_rollouts(str(path)) == {"p1": "second " + GOOD}
    columns = {"prompt": [[], []], "extra_info": [{"id": "p1"}, {"id": "p2"}]}
    table = PromptTable(list(columns), columns.__getitem__)
    guidance = GuidanceConfig(teacher_rollouts=str(path))
    with pytest.raises(DataError, match="s2l.guidance.teacher_rollouts=.*: 1 of 2 rows cannot guide"):
        check_traces(table, guidance, Characters())
    columns = {"prompt": [[], [{"content": "another"}]], "extra_info": [{"id": "p1"}, {"id": "p1"}]}
    with pytest.raises(DataError, match="prompt p1 of row 0 is also at row 1, with another text"):
        check_traces(PromptTable(list(columns), columns.__getitem__), guidance, Characters())
    both = {"s2l__guidance__teacher_rollouts": str(path), "s2l__guidance__trace": "reasoning"}
    assert "traces come from one place" in recipe.refused(**both)


def test_teacher_rollouts_that_cannot_be_used(tmp_path) -> None:
    path = tmp_path / "rollouts.jsonl"
    path.write_text('{"prompt_id": "a", "response": "x", "acc": 0}\n')
    with pytest.raises(DataError, match="no row has a response with acc = 1"):
        read_teacher_rollouts(str(path))
    path.write_text('{"prompt_id": "a", "text": "x"}\n')
    with pytest.raises(DataError, match="KeyError: 'response'"):
        read_teacher_rollouts(str(path))


def test_missing_column_lists_the_columns() -> None:
    table = PromptTable(["prompt"], lambda name: [])
    with pytest.raises(DataError, match="s2l.guidance.trace=reasoning: the training data has no column reasoning"):
        check_traces(table, GuidanceConfig(trace="reasoning"), Characters())
    bare = PromptTable(["extra_info"], lambda name: [{}, {"trace": GOOD}])
    with pytest.raises(DataError, match="1 of 2 rows have no trace in extra_info; the first is row 0"):
        check_traces(bare, GuidanceConfig(), Characters())


def test_tokenizer_that_changes_a_trace_is_shown_by_example() -> None:
    with pytest.raises(DataError, match="a café</think>.*' becomes 'hink>a caf\\?</think>"):
        look("<think>a café</think>\\boxed{2}")
