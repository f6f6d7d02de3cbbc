"""A character tokenizer in Qwen's chat markup. Its vocabulary is exactly the models' embedding rows."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, TURN_START, TURN_END, THINK, THINK_END, UNKNOWN = SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<think>",
    "</think>",
    "<|unk|>",
)
CHARACTERS = ("\n", *(chr(code) for code in range(32, 127)))
VOCABULARY: dict[str, int] = {token: index for index, token in enumerate((*SPECIALS, *CHARACTERS))}
PAD_ID, EOS_ID = VOCABULARY[PAD], VOCABULARY[TURN_END]
MAX_LENGTH = 2048
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of every toy model: printable ASCII, newline and six specials; all else is ``<|unk|>``.

    As in Qwen3, ``<think>`` and ``</think>`` are no special tokens: they survive ``skip_special_tokens=True``.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel(VOCABULARY, unk_token=UNKNOWN))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Fuse()
    core.add_tokens([AddedToken(token, normalized=False, special=False) for token in (THINK, THINK_END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token=PAD,
        eos_token=TURN_END,
        unk_token=UNKNOWN,
        additional_special_tokens=[TURN_START],
        model_max_length=MAX_LENGTH,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def prompt_ids(question: str) -> list[int]:
    """What the chat template gives for one user message, without loading a tokenizer."""
    start, line = VOCABULARY[TURN_START], VOCABULARY["\n"]
    return [start, *encode("user\n"), *encode(question), EOS_ID, line, start, *encode("assistant\n")]


def encode(text: str) -> list[int]:
    """Ids of text without specials."""
    unknown = VOCABULARY[UNKNOWN]
    return [VOCABULARY.get(character, unknown) for character in text]


def response_ids(reasoning: str, answer: str) -> list[int]:
    """Ids of ``<think>reasoning</think>\\boxed{answer}`` and the end of the turn."""
    boxed = encode(f"\\boxed{{{answer}}}")
    return [VOCABULARY[THINK], *encode(reasoning), VOCABULARY[THINK_END], *boxed, EOS_ID]
