"""Tokens, passwords and keys: found by the names of settings and the looks of values, and written as ``***``."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from s2l_ext.errors import ConfigError

MASK = "***"
SECRET_WORDS = frozenset(
    ("secret", "secrets", "password", "passwords", "passwd", "passphrase", "credential", "credentials", "apikey")
)
TOKEN_KINDS = frozenset(
    [
        *("eos", "bos", "pad", "unk", "sep", "cls", "mask", "image", "video", "audio", "chat", "stop", "special"),
        *("think", "begin", "end", "start", "text", "draft", "user", "system"),
    ]
)
"""``eos_token`` is a text of the tokenizer; ``hf_token`` is a secret."""
DIGEST_WORDS = frozenset(("revision", "commit", "sha", "sha1", "rev", "ref", "hash", "digest", "fingerprint"))
KEY_PREFIXES = frozenset(("api", "access", "private", "secret", "auth", "wandb", "encryption", "signing"))
FILE_ENDINGS = ("_path", "_file", "_dir")

UNMISTAKABLE = re.compile(
    r"""(?<![A-Za-z0-9])(?:
        hf_[A-Za-z0-9]{20,}                            # Hugging Face
      | wandb_v\d+_[A-Za-z0-9_]{20,}                   # Weights & Biases, new form
      | (?:AKIA|ASIA)[A-Z0-9]{16}                      # AWS
      | gh[pousr]_[A-Za-z0-9]{30,} | github_pat_[A-Za-z0-9_]{30,} | glpat-[A-Za-z0-9_-]{20,}
      | sk-[A-Za-z0-9_-]{20,} | AIza[A-Za-z0-9_-]{35} | xox[abprs]-[A-Za-z0-9-]{10,}
      | eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*   # JSON web token
    )(?![A-Za-z0-9])
    | -----BEGIN\ [A-Z ]*PRIVATE\ KEY-----(?:.*?-----END\ [A-Z ]*PRIVATE\ KEY-----|.*)""",
    re.VERBOSE | re.DOTALL,
)
OLD_WANDB = re.compile(r"(?<![A-Za-z0-9/_@.-])[0-9a-f]{40}(?![A-Za-z0-9/_-])")
"""Also what a git commit looks like, which stands in a path, after an @, or under a key that says so."""
USER_IN_URL = re.compile(r"(://[^/\s:@]*:)[^/\s@]+(@)")
ASSIGNED = re.compile(r"""(?P<key>[A-Za-z_][\w.-]*)(?P<equals>["']?\s*[=:]\s*["']?)(?P<value>[^\s"',}\]]+)""")
BEARER = re.compile(r"(?i)(\bbearer\s+)[A-Za-z0-9._~+/-]{8,}=*")
FIX = (
    "It would be printed by verl, kept in the run's files and shown on Ray's dashboard. Take it out and set it as an "
    "environment variable where the process runs that needs it (HF_TOKEN, WANDB_API_KEY; for `ray start` before it)."
)


def is_secret_key(key: str) -> bool:
    """Whether the last part of a dotted key names a secret (``HF_TOKEN``, ``judge.apiKey``), not ``max_tokens``."""
    words = _words(key.rpartition(".")[2])
    if SECRET_WORDS.intersection(words):
        return True
    if words[-1:] == ["token"]:
        return not TOKEN_KINDS.intersection(words)
    return words[-1:] == ["key"] and bool(KEY_PREFIXES.intersection(words))


def _words(name: str) -> list[str]:
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


def masked(value: Any, key: str = "") -> Any:
    """A copy of plain values (mappings, lists, texts, numbers) in which every secret is ``***``. ``key``: name under
    which the value stands."""
    if isinstance(value, Mapping):
        hidden = is_secret_key(key)
        return {name: _masked_item(item, str(name), hidden) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, key) for item in value]
    if not isinstance(value, str) or not value:
        return value
    return MASK if is_secret_key(key) else masked_text(value, commits=bool(DIGEST_WORDS.intersection(_words(key))))


def _masked_item(value: Any, name: str, hidden: bool) -> Any:
    return MASK if hidden and isinstance(value, str) and value else masked(value, name)


def masked_text(text: str, commits: bool = False) -> str:
    """A text without what looks like a secret, and without values assigned to names of secrets. ``commits``: 40 hex
    digits are a commit here, not an old key of Weights & Biases."""
    text = BEARER.sub(rf"\g<1>{MASK}", UNMISTAKABLE.sub(MASK, text))
    text = USER_IN_URL.sub(rf"\g<1>{MASK}\g<2>", text)
    if not commits:
        text = OLD_WANDB.sub(_masked_commit(text), text)
    return ASSIGNED.sub(_masked_assignment, text)


def _masked_commit(text: str) -> Any:
    """Words such as ``revision`` right before the digits say that it is a commit."""

    def replaced(found: re.Match[str]) -> str:
        before = _words(text[max(0, found.start() - 24) : found.start()])
        return found[0] if DIGEST_WORDS.intersection(before) else MASK

    return replaced


def _masked_assignment(found: re.Match[str]) -> str:
    secret = is_secret_key(found["key"]) and found["value"].lower() not in ("null", "none", "true", "false", MASK)
    return f"{found['key']}{found['equals']}{MASK}" if secret and not found["value"].isdigit() else found[0]


def refuse_secrets(config: Mapping[str, Any], root: str = "") -> None:
    """Raise ConfigError for the first setting that holds a secret; the message does not repeat the value.

    Old keys of Weights & Biases look like commits and are only masked.
    """
    key = secret_setting(config, root)
    if key is not None:
        raise ConfigError(f"{key} holds what looks like a secret. {FIX}")


def secret_setting(config: Mapping[str, Any], root: str = "") -> str | None:
    """The key of the first setting that holds a secret."""
    return next((key for key, text in _texts(config, root) if is_secret_key(key) or looks_secret(text)), None)


def looks_secret(text: str) -> bool:
    """Whether a token of a known form or a password in a URL stands in a text."""
    return bool(UNMISTAKABLE.search(text) or USER_IN_URL.search(text))


def secret_variable(name: str, value: str) -> bool:
    """Whether an environment variable holds a secret: by its name, unless that is of a file with it, or by its look."""
    of_a_file = name.lower().endswith(FILE_ENDINGS)
    return bool(value) and ((is_secret_key(name) and not of_a_file) or looks_secret(value))


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for name, item in value.items():
            # what stands below `credentials:` is as secret as the block
            inner = f"{key}.{name}" if key else str(name)
            yield from ((key, text) if is_secret_key(key) else (found, text) for found, text in _texts(item, inner))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _texts(item, key)
    elif isinstance(value, str) and value and value != MASK:
        yield key, value
