from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from s2l_ext.toy import tokenizer as toy
from s2l_ext.toy.models import SIZES, build_model
from s2l_ext.toy.tasks import from_question

TOKENIZER = toy.build_tokenizer()


def ids_of(text: str) -> list[int]:
    return list(TOKENIZER(text, add_special_tokens=False).input_ids)


@given(st.text(alphabet=st.sampled_from(toy.CHARACTERS)))
def test_printable_ascii_and_newlines_survive_a_round_trip(text: str) -> None:
    assert TOKENIZER.decode(ids_of(text)) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_without_markup_has_one_id_per_character_and_none_is_padding(text: str) -> None:
    assume(not any(special in text for special in toy.SPECIALS))
    ids = ids_of(text)
    assert ids == toy.encode(text)
    assert toy.PAD_ID not in ids


def test_unknown_characters_are_one_unknown_token_each() -> None:
    assert ids_of("aé\t€b") == [ids_of("a")[0], *[toy.VOCABULARY["<|unk|>"]] * 3, ids_of("b")[0]]
    assert TOKENIZER.unk_token_id == toy.VOCABULARY["<|unk|>"]


def test_vocabulary_size_equals_every_models_embedding() -> None:
    assert len(TOKENIZER) == TOKENIZER.vocab_size == len(toy.VOCABULARY) == 102
    for size in SIZES.values():
        model = build_model(size, 0)
        assert model.config.vocab_size == model.get_input_embeddings().weight.shape[0] == 102


@pytest.mark.parametrize(
    ("size", "low", "high"), [("small", 1e5, 1.2e5), ("medium", 8e5, 1e6), ("large", 2.7e6, 3.3e6)]
)
def test_model_sizes_and_ids(size: str, low: float, high: float) -> None:
    model = build_model(SIZES[size], 0)
    assert low < model.num_parameters() < high
    for config in (model.config, model.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (TOKENIZER.eos_token_id, TOKENIZER.pad_token_id)
    assert model.config.tie_word_embeddings
    assert model.config.max_position_embeddings == 2048
    assert model.config.head_dim == 32


def test_special_tokens_are_single_ids_and_thinking_survives_skipping() -> None:
    text = "<|im_start|><think>1+1=2</think>\\boxed{2}<|im_end|><|endoftext|>"
    ids = ids_of(text)
    assert [ids[0], ids[1], ids[7], ids[-2], ids[-1]] == [1, 3, 4, 2, 0]
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == "<think>1+1=2</think>\\boxed{2}"
    assert (TOKENIZER.pad_token_id, TOKENIZER.eos_token_id) == (0, 2)


def test_chat_template_and_the_ids_used_for_pretraining_agree() -> None:
    messages = [{"role": "user", "content": "1+2=?"}]
    text: Any = TOKENIZER.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>user\n1+2=?<|im_end|>\n<|im_start|>assistant\n"
    assert ids_of(text) == toy.prompt_ids("1+2=?")


def test_response_ids_are_the_trace_and_the_end_of_turn() -> None:
    problem = from_question("5-6+4*3=?")
    assert toy.response_ids(",".join(problem.steps), problem.answer) == [*ids_of(problem.trace), 2]


def test_saved_tokenizer_is_the_same(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    text = "<think>é5-6=9;</think>\n\\boxed{9}<|im_end|>"
    assert loaded(text, add_special_tokens=False).input_ids == ids_of(text)
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.chat_template == TOKENIZER.chat_template
    assert loaded.decode(ids_of(text), skip_special_tokens=True) == TOKENIZER.decode(
        ids_of(text), skip_special_tokens=True
    )
