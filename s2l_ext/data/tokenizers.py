"""Do two models have the same tokens? Explorer and learner share sequences token by token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from omegaconf import DictConfig

from s2l_ext.config.verl_settings import setting
from s2l_ext.errors import TokenizerMismatch
from s2l_ext.utils.digests import digest_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CUSTOM_TEMPLATE = "actor_rollout_ref.model.custom_chat_template"
MAX_TOKENS_SHOWN = 3
SHOWN_CHARS = 40
SPECIAL_IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")


class TokenizerSnapshot(NamedTuple):
    """What has to agree: token -> id, the special ids, and the chat template (None when there is none)."""

    vocabulary: dict[str, int]
    special_ids: dict[str, int | None]
    chat_template: str | None


@dataclass(frozen=True)
class Trust:
    """Whether Python files of a model's folder may run, and the setting that says so."""

    code: bool = False
    setting: str = "actor_rollout_ref.model.trust_remote_code=True"

    def needed(self, key: str, path: str) -> str:
        """What is wrong with a model whose code may not run."""
        code = "brings Python code of its own, which runs only where it is allowed. Read the code, then set"
        return f"{key}={path} {code} {self.setting}."


NO_TRUST = Trust()


def trust_of(cfg: DictConfig) -> Trust:
    """What verl's setting for the learner allows; every other model of a run is loaded with it too."""
    return Trust(bool(setting(cfg, "actor_rollout_ref.model.trust_remote_code")))


def trust_option(given: bool) -> Trust:
    """What a command's option allows."""
    return Trust(given, "--trust-remote-code")


def compare(
    path_a: str,
    path_b: str,
    key_a: str = "actor_rollout_ref.model.path",
    key_b: str = "s2l.explorer.model_path",
    trust: Trust = NO_TRUST,
    both_render: bool = True,
) -> list[str]:
    """Raise TokenizerMismatch unless both tokenizers give the same ids and, where both render chats, the same chat
    prompt; returns warnings. ``both_render``: the second model makes prompts of its own; else another chat template is
    a warning.

    Only tokenizers are compared: a model may pad its embedding beyond them (Qwen3: 151936 rows for 151669 tokens).
    """
    a, b = snapshot(path_a, key_a, trust), snapshot(path_b, key_b, trust)
    template = _template_difference(a.chat_template, b.chat_template)
    differences = describe_token_differences(a, b)
    if template and both_render:
        differences.append(f"chat template: {template}")
    if differences:
        raise TokenizerMismatch(
            f"{key_a}={path_a} and {key_b}={path_b} do not share a tokenizer.\n  "
            + "\n  ".join(differences)
            + "\n  Use two models of one family; sequences of one are fed to the other token by token."
        )
    if not template:
        return []
    return [
        f"{key_b}={path_b} has another chat template than {key_a}={path_a} ({template}). It is given "
        f"prompts that {key_a} rendered, in a form that it may not have been trained on."
    ]


def snapshot(path: str, key: str, trust: Trust = NO_TRUST) -> TokenizerSnapshot:
    """Load what is compared. ``path`` is a folder or hub id, ``key`` is where the user wrote it."""
    tokenizer = load_tokenizer(path, key, trust)
    template = tokenizer.chat_template
    return TokenizerSnapshot(
        vocabulary=dict(tokenizer.get_vocab()),
        special_ids={name: getattr(tokenizer, name, None) for name in SPECIAL_IDS},
        chat_template=template if template is None or isinstance(template, str) else str(template),
    )


def load_tokenizer(path: str, key: str, trust: Trust = NO_TRUST) -> PreTrainedTokenizerBase:
    """The tokenizer of a folder or hub id; ``key`` is where the user wrote it."""
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(path, trust_remote_code=trust.code)
    except Exception as error:  # code of the folder may raise anything
        if not trust.code and "trust_remote_code" in str(error):
            raise TokenizerMismatch(trust.needed(key, path)) from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise TokenizerMismatch(f"{key}={path}: no tokenizer could be loaded ({reason}). Check the path.") from error
    return tokenizer


def tokenizer_here(path: str, trust: Trust = NO_TRUST) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or of a hub id in the cache; None where there is none. No hub is asked."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=trust.code, local_files_only=True)
    except Exception:  # what is wrong is said where the tokenizer is needed
        return None


def require_rows(key: str, path: str, rows: int | None, trust: Trust = NO_TRUST) -> None:
    """Raise TokenizerMismatch for a tokenizer with ids beyond the ``rows`` of a model's embedding, which CUDA would
    answer with a device-side assertion. A model with more rows than tokens is well (Qwen3 pads).
    """
    tokenizer = tokenizer_here(path, trust) if rows else None
    largest = max(tokenizer.get_vocab().values(), default=0) if tokenizer is not None else 0
    if rows and largest >= rows:
        raise TokenizerMismatch(
            f"{key}={path}: its tokenizer has ids up to {largest}, its model {rows} rows (vocab_size in config.json). "
            "Tokens without a row cannot be read: use the tokenizer that the model was trained with, or resize the "
            "model (transformers' resize_token_embeddings) and save it again."
        )


def date_warnings(key: str, template: str | None, options: Mapping[str, object]) -> list[str]:
    """A chat template that writes today's date makes other prompts tomorrow, also than a store's. ``options`` are what
    it is given, ``data.apply_chat_template_kwargs``.
    """
    if "strftime_now" not in (template or "") or "date_string" in options:
        return []
    named = "date_string" in (template or "")
    fix = "+data.apply_chat_template_kwargs.date_string='26 Jul 2024'" if named else f"{CUSTOM_TEMPLATE}, without it"
    return [
        f"{key}: its chat template writes today's date, so a prompt differs from day to day: a resumed run, a store "
        f"and an evaluation of another day see other tokens. Set {fix}."
    ]


def digest(tokens: TokenizerSnapshot) -> str:
    """SHA-256 of all that is compared: two models may share sequences, and render alike, if theirs are equal."""
    return digest_of([sorted(tokens.vocabulary.items()), tokens.special_ids, tokens.chat_template])


def token_digest(tokens: TokenizerSnapshot) -> str:
    """The same without the chat template: two models may share sequences of tokens if theirs are equal."""
    return digest_of([sorted(tokens.vocabulary.items()), tokens.special_ids])


def describe_token_differences(a: TokenizerSnapshot, b: TokenizerSnapshot) -> list[str]:
    """Lines that say which token ids differ; empty when none does."""
    lines, ours, theirs = [], a.vocabulary, b.vocabulary
    if ours != theirs:
        differing = [token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)]
        differing.sort(key=lambda token: (min(ours.get(token, len(ours)), theirs.get(token, len(theirs))), token))
        shown = [
            f"{token!r}: {' / '.join(f'id {each[token]}' if token in each else 'absent' for each in (ours, theirs))}"
            for token in differing[:MAX_TOKENS_SHOWN]
        ]
        count = f"{len(ours)} / {len(theirs)} tokens, {len(differing)} differ"
        lines.append(f"vocabulary: {count}, first: {'; '.join(shown)}")
    special = [(name, each, b.special_ids[name]) for name, each in a.special_ids.items()]
    if different := [f"{name} {one} / {other}" for name, one, other in special if one != other]:
        lines.append(f"special ids: {', '.join(different)}")
    return lines


def _template_difference(a: str | None, b: str | None) -> str:
    """How two chat templates differ; empty when they do not."""
    if a == b:
        return ""
    if a is None or b is None:
        return " / ".join("absent" if each is None else "present" for each in (a, b))
    at = next((at for at, (one, other) in enumerate(zip(a, b, strict=False)) if one != other), min(len(a), len(b)))
    return f"differs from character {at} on: {a[at : at + SHOWN_CHARS]!r} / {b[at : at + SHOWN_CHARS]!r}"
