"""How unlike the responses to one problem are: answers, text, tokens, and how long they stay together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from s2l_ext.errors import ConfigError

LIBRARIES = ("sacrebleu", "rapidfuzz")


def require_libraries() -> None:
    """Raise ConfigError when the extra ``diversity`` is not installed."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"s2l diversity: {' and '.join(missing)} not installed (Self-BLEU, edit diversity). Install them: "
            "pip install 's2l-ext[diversity]'"
        )


def distinct_answer_ratio(answers: Sequence[str | None]) -> float:
    """Distinct answers over samples, 0 to 1. A sample without an answer adds none."""
    return len({answer for answer in answers if answer}) / len(answers)


def self_bleu(texts: Sequence[str]) -> float:
    """Mean BLEU-4 of each text with all others as references, 0 to 1; lower is more diverse (Zhu et al. 2018).

    sacrebleu's sentence score: tokenizer 13a, exponential smoothing, orders that the text is too short for left out.
    An empty text scores 1 beside another empty one and 0 beside none, where BLEU gives 0 to both.
    """
    scores = [_bleu_among(text, [*texts[:place], *texts[place + 1 :]]) for place, text in enumerate(texts)]
    return float(np.mean(scores))


def _bleu_among(text: str, others: list[str]) -> float:
    if not text.strip():
        return float(any(not other.strip() for other in others))
    return float(_bleu().sentence_score(text, others).score) / 100.0


@cache
def _bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def edit_diversity(rows: Sequence[Sequence[int] | np.ndarray]) -> float:
    """Mean over pairs of the Levenshtein distance of their tokens over the longer one's length, 0 to 1."""
    from rapidfuzz.distance import Levenshtein

    plain = [np.asarray(row).tolist() for row in rows]
    return float(np.mean([Levenshtein.normalized_distance(a, b) for a, b in combinations(plain, 2)]))


def prefix_match(rows: Sequence[Sequence[int] | np.ndarray], positions: int) -> NDArray[np.floating]:
    """Share of pairs whose first t tokens are the same, t = 1..positions. Rows that ended alike stay the same."""
    shares = np.zeros(positions)
    labels = [0] * len(rows)
    for place in range(positions):
        seen: dict[tuple[int, int], int] = {}
        tokens = [int(row[place]) if place < len(row) else -1 for row in rows]
        labels = [seen.setdefault(key, len(seen)) for key in zip(labels, tokens, strict=True)]
        if len(seen) == len(rows):
            break
        shares[place] = sum(count * (count - 1) for count in Counter(labels).values())
    return shares / (len(rows) * (len(rows) - 1))
