"""The process in which math-verify judges: one JSON line in, one JSON line out. :mod:`math_helper` owns it.

It judges in its main thread, where math-verify's own timeouts work, and under limits that the kernel keeps: memory,
and CPU seconds per question, so that a runaway computation ends even when the owner has died.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

from s2l_ext.rewards.fast_math import DELIMITED, SHORT_CHARS, same_text

PARSE_SECONDS = 3
MEMORY_BYTES = 4 * 2**30
SPARE_CPU_SECONDS = 3
READY = "ready"


def judge(
    text: str,
    gold: str,
    whole: bool,
    seconds: float = 20.0,
    precision: int = 6,
    strict: bool = True,
    allow_set_relation_comp: bool = False,
    match_types: list[str] | tuple[str, ...] = ("latex", "expr"),
) -> dict[str, Any]:
    """``correct``, and the expression ``extracted`` from ``text``. Must run in a main thread.

    Args:
        text: a final answer, or free text in which math-verify has to find one (``whole``).
        seconds: the owner's limit; math-verify gives up a single step after 3 s or this, whatever is less.
        precision: decimal places that must agree when one side is a decimal.
        strict: variables must have the same names.
        allow_set_relation_comp: a relation may equal a set (``1 < x < 2`` and ``(1, 2)``) on either side.
        match_types: what is looked for: ``latex``, ``expr`` (plain numbers and arithmetic), or both.
    """
    from math_verify import verify

    mend_percent()
    limit = max(1, min(PARSE_SECONDS, int(seconds)))
    targets = _targets(match_types)
    truth = _parse(gold, False, targets, limit)
    candidates = [_parse(text, whole, targets, limit)]
    if whole and len(text) <= SHORT_CHARS and "\n" not in text:
        candidates.append(_parse(text, False, targets, limit))
    correct = same_text(text, gold) or any(
        verify(truth, parsed, precision, 15, strict, allow_set_relation_comp, limit) for parsed in candidates
    )
    return {"correct": bool(correct), "extracted": str(candidates[0][-1]) if candidates[0] else ""}


def mend_percent() -> None:
    """Let latex2sympy2_extended 1.11.0 read ``28\\%`` on antlr 4.9.3, the version that hydra needs.

    Its grammar for 4.9.3 lacks an accessor that it asks every atom for before it comes to percentages, so each of them
    fails with an AttributeError. With 4.13 they are read; so are they with this.
    """
    from latex2sympy2_extended.latex2sympy2 import PSParser

    if not hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        PSParser.AtomContext.FUNC_GAMMA = lambda self: None


def _targets(names: list[str] | tuple[str, ...]) -> list[Any]:
    from math_verify import ExprExtractionConfig, LatexExtractionConfig

    known = {"latex": LatexExtractionConfig, "expr": ExprExtractionConfig}
    return [known[name]() for name in names]


def _parse(text: str, whole: bool, targets: list[Any], limit: int) -> list[Any]:
    """Expressions in ``text``; a final answer without delimiters is read as LaTeX first, where LaTeX is looked for."""
    from math_verify import LatexExtractionConfig, parse

    latex = any(isinstance(target, LatexExtractionConfig) for target in targets)
    if latex and not whole and not DELIMITED.search(text):
        found = parse(f"\\boxed{{{text}}}", targets, parsing_timeout=limit)
        if any(not isinstance(item, str) for item in found):
            return list(found)
    return list(parse(text, targets, parsing_timeout=limit))


def serve() -> None:
    """Answer one JSON line for each JSON line of stdin, after one line that says ready or why not."""
    try:
        import math_verify  # noqa: F401
    except Exception as error:
        print(f"{type(error).__name__}: {error}".replace("\n", " "), flush=True)
        return
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print(READY, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        _limit_cpu(question["seconds"])
        try:
            reply = judge(**question)
        except Exception:
            reply = {}
        print(json.dumps(reply), flush=True)


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + SPARE_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    serve()
