"""What the tokenizers of Qwen3 and Llama 3.2 do that the toy's 102 characters never do."""

import pytest
from transformers import AutoTokenizer

from s2l_ext.data.tokenizers import compare
from s2l_ext.errors import TokenizerMismatch
from s2l_ext.methods.guidance.client import guidance_ids
from s2l_ext.methods.guidance.config import GuidanceConfig

pytestmark = pytest.mark.contract

QUESTION = [{"role": "user", "content": "What is 2 + 2?"}]
TRACE = "<think>\nTwo and two √2 😀 are four.\n</think>\n\nThe answer is \\boxed{4}."


@pytest.fixture(scope="module")
def qwen(real_tokenizer):
    return AutoTokenizer.from_pretrained(real_tokenizer("qwen3"))


@pytest.fixture(scope="module")
def llama(real_tokenizer):
    return AutoTokenizer.from_pretrained(real_tokenizer("llama3_2"))


def guided(tokenizer, length: int, trace: str = TRACE, response_length: int = 64, **template) -> str:
    """Prompt and guidance as the engine reads them."""
    text = tokenizer.apply_chat_template(QUESTION, tokenize=False, add_generation_prompt=True, **template)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    config = GuidanceConfig(min_continuation=16)
    ids = guidance_ids(trace, tokenizer, prompt, length, config, response_length, answer="4")
    assert len(ids) <= min(length, response_length - 16)
    return tokenizer.decode([*prompt, *ids])


def test_thinking_is_opened_by_the_trace_where_the_template_leaves_it_to_the_model(qwen) -> None:
    assert guided(qwen, 5).endswith("<|im_start|>assistant\n<think>\nTwo and two")
    assert guided(qwen, 5, enable_thinking=True) == guided(qwen, 5)


def test_a_template_that_closes_the_thinking_gets_the_trace_without_tags(qwen) -> None:
    text = guided(qwen, 40, enable_thinking=False)
    assert text.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\nTwo and two √2 😀 are four.\n\nThe answer is ")
    assert text.count("<think>") == text.count("</think>") == 1 and "boxed" not in text


def test_guidance_may_end_inside_a_character_and_goes_on_with_its_other_bytes(qwen) -> None:
    """Qwen3 has two tokens for the root sign. The model gets ids, so no byte is lost; only the text shows a mark."""
    prompt = qwen.encode("x", add_special_tokens=False)
    whole = qwen.encode("<think>\nTwo and two √2", add_special_tokens=False)
    cut = next(place for place in range(1, len(whole)) if qwen.decode(whole[:place]).endswith("�"))
    ids = guidance_ids(TRACE, qwen, prompt, cut, GuidanceConfig(min_continuation=16), 64, answer="4")
    assert ids == whole[:cut]
    assert qwen.decode([*ids, *whole[cut:]]).endswith("two √2"), "the model's own next token completes the character"


def test_guidance_never_holds_a_token_that_ends_the_turn(qwen, llama) -> None:
    for tokenizer in (qwen, llama):
        ids = guidance_ids(TRACE, tokenizer, [], 64, GuidanceConfig(min_continuation=16), 128, answer="4")
        assert ids and tokenizer.eos_token_id not in ids and tokenizer.bos_token_id not in ids


def test_special_tokens_of_qwen3(qwen) -> None:
    """Padding is another token than the end of a turn: a mask made from the end token would cut real ends."""
    assert (len(qwen), qwen.eos_token, qwen.pad_token) == (151_669, "<|im_end|>", "<|endoftext|>")
    assert qwen.encode("<|im_end|>", add_special_tokens=False) == [qwen.eos_token_id]


def test_sizes_of_one_family_share_a_tokenizer_and_families_do_not(real_tokenizer) -> None:
    qwen, llama = str(real_tokenizer("qwen3")), str(real_tokenizer("llama3_2"))
    assert compare(qwen, qwen) == []
    with pytest.raises(TokenizerMismatch, match=r"vocabulary: 151669 / 128256 tokens"):
        compare(qwen, llama)
