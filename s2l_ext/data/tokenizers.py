"""Do two models speak the same tokens? Explorer and learner share sequences token by token."""

from __future__ import annotations

import difflib
import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from s2l_ext.errors import TokenizerMismatch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_DIFF_LINES = 10
MAX_TOKENS_SHOWN = 3
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


@dataclass(frozen=True)
class TokenizerSnapshot:
    """What has to agree: token -> id, the special ids, and the chat template (None when there is none)."""

    vocabulary: dict[str, int]
    special_ids: dict[str, int | None]
    chat_template: str | None


def compare(
    path_a: str, path_b: str, key_a: str = "actor_rollout_ref.model.path", key_b: str = "s2l.explorer.model_path"
) -> None:
    """Raise unless both tokenizers give the same ids and the same chat prompt.

    Only tokenizers are compared: a model may pad its embedding beyond them (Qwen3: 151936 rows for 151669 tokens).

    Args:
        path_a, path_b: Hugging Face folder or hub id.
        key_a, key_b: configuration keys that hold the two paths, named in the message.

    Raises:
        TokenizerMismatch: a tokenizer cannot be loaded, or vocabularies, special ids or chat templates differ.
    """
    differences = describe_differences(snapshot(path_a, key_a), snapshot(path_b, key_b))
    if differences:
        raise TokenizerMismatch(
            f"{key_a}={path_a} and {key_b}={path_b} do not share a tokenizer.\n  "
            + "\n  ".join(differences)
            + "\n  Use two models of one family; sequences of one are fed to the other token by token."
        )


def snapshot(path: str, key: str) -> TokenizerSnapshot:
    """Load what is compared. ``path`` is a folder or hub id, ``key`` is where the user wrote it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenizerMismatch(f"{key}={path}: no tokenizer could be loaded ({reason}). Check the path.") from error
    template = tokenizer.chat_template
    return TokenizerSnapshot(
        vocabulary=dict(tokenizer.get_vocab()),
        special_ids={name: getattr(tokenizer, name, None) for name in SPECIAL_IDS},
        chat_template=template if template is None or isinstance(template, str) else str(template),
    )


def digest(tokens: TokenizerSnapshot) -> str:
    """SHA-256 of all that is compared: two models may share sequences if theirs are equal."""
    text = json.dumps([sorted(tokens.vocabulary.items()), tokens.special_ids, tokens.chat_template], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def describe_differences(a: TokenizerSnapshot, b: TokenizerSnapshot) -> list[str]:
    """Lines that say what differs; empty when nothing does."""
    return [
        *_vocabulary_difference(a.vocabulary, b.vocabulary),
        *_special_difference(a.special_ids, b.special_ids),
        *_template_difference(a.chat_template, b.chat_template),
    ]


def _vocabulary_difference(a: dict[str, int], b: dict[str, int]) -> list[str]:
    if a == b:
        return []
    differing = [token for token in a.keys() | b.keys() if a.get(token) != b.get(token)]
    differing.sort(key=lambda token: (min(a.get(token, len(a)), b.get(token, len(b))), token))
    shown = [f"{token!r}: {_id(a, token)} / {_id(b, token)}" for token in differing[:MAX_TOKENS_SHOWN]]
    return [f"vocabulary: {len(a)} / {len(b)} tokens, {len(differing)} differ, first: {'; '.join(shown)}"]


def _id(vocabulary: dict[str, int], token: str) -> str:
    return f"id {vocabulary[token]}" if token in vocabulary else "absent"


def _special_difference(a: dict[str, int | None], b: dict[str, int | None]) -> list[str]:
    different = [f"{name} {a[name]} / {b[name]}" for name in a if a[name] != b[name]]
    return [f"special ids: {', '.join(different)}"] if different else []


def _template_difference(a: str | None, b: str | None) -> list[str]:
    if a == b:
        return []
    if a is None or b is None:
        return [f"chat template: {'absent' if a is None else 'present'} / {'absent' if b is None else 'present'}"]
    lines = list(difflib.unified_diff(a.splitlines(), b.splitlines(), "first", "second", lineterm="", n=0))
    if not lines:
        return ["chat template: differs in line endings or a trailing newline only"]
    more = [f"... {len(lines) - MAX_DIFF_LINES} more lines"] if len(lines) > MAX_DIFF_LINES else []
    return ["chat template:", *(line[:160] for line in lines[:MAX_DIFF_LINES]), *more]
