"""The process in which math-verify judges: one JSON line in, one JSON line out. :mod:`math_helper` owns it.

It judges in its main thread, where signals arrive, and under limits that the kernel keeps: memory, and CPU seconds per
question, so that a runaway computation ends even when the owner has died.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

READY = "ready"
MEMORY_BYTES = 4 * 2**30
SPARE_CPU_SECONDS = 3


def fix_percent() -> None:
    """Let latex2sympy2_extended 1.11.0 read ``28\\%`` on antlr 4.9.3, the version that hydra needs.

    Its grammar for 4.9.3 lacks an accessor that it asks every atom for before it comes to percentages, so each of them
    fails with an AttributeError. With 4.13 they are read; so are they with this.
    """
    from latex2sympy2_extended.latex2sympy2 import PSParser

    if not hasattr(PSParser.AtomContext, "FUNC_GAMMA"):
        PSParser.AtomContext.FUNC_GAMMA = lambda self: None


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """The reply to a question: a verdict, or with ``gold`` alone what is read of a gold."""
    from s2l_ext.rewards import math_equality

    fix_percent()
    return math_equality.judge(**question) if "text" in question else math_equality.read(**question)


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
            reply = answer(question)
        except Exception:
            reply = {}
        print(json.dumps(reply), flush=True)


def _limit_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + seconds) + SPARE_CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.getrlimit(resource.RLIMIT_CPU)[1]))


if __name__ == "__main__":
    serve()
