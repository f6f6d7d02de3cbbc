"""math-verify in a child process, so that judging is safe in any thread and always ends.

math-verify stops a runaway expression (``9^{9^{9^9}}``) by SIGALRM, which Python delivers in a main thread only, and
verl scores in threads; without its timeouts such an answer would hang a reward worker for good. The child judges in
its own main thread under a memory limit. A child that overruns even so is killed and the answer counts as wrong.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import subprocess
import sys
import threading
from typing import Any

PARSE_SECONDS = 3
HARD_SECONDS = 20.0
START_SECONDS = 180.0
MEMORY_BYTES = 4 * 2**30
SHORT_CHARS = 200

DELIMITED = re.compile(r"(?<!\\)\$|\\\(|\\\[|\\boxed")


class _Helper:
    """A child process that answers one JSON line per JSON line. Started at first use; one question at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        with self._lock, contextlib.suppress(OSError, ValueError):
            try:
                return self._exchange(question)
            except BaseException:
                self._stop()
                raise
        return {}

    def _exchange(self, question: dict[str, Any]) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            self._process = self._start()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._line(self._process, HARD_SECONDS))

    def _start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [sys.executable, "-m", "s2l_ext.rewards.math_helper"]
        pipe = subprocess.PIPE
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env=environment
        )
        self._process = process
        self._line(process, START_SECONDS)
        return process

    def _line(self, process: subprocess.Popen[str], seconds: float) -> str:
        assert process.stdout is not None
        if not select.select([process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"no answer within {seconds} s")
        return process.stdout.readline()

    def _stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


HELPER = _Helper()


def _forget_helper() -> None:
    """A forked child must not share its parent's pipe."""
    global HELPER
    HELPER = _Helper()


os.register_at_fork(after_in_child=_forget_helper)


def compare(text: str, gold: str, whole: bool) -> tuple[bool, str]:
    """Whether ``text`` equals ``gold``, and the expression found in it. Never raises; no verdict means wrong.

    Args:
        text: a final answer, or free text in which math-verify has to find one (``whole``).
    """
    reply = HELPER.ask({"text": text, "gold": gold, "whole": whole})
    return reply.get("correct") is True, str(reply.get("extracted", ""))


def judge(text: str, gold: str, whole: bool) -> dict[str, Any]:
    """What the child answers to :func:`compare`. Its timeouts need a main thread."""
    from math_verify import verify

    truth = _parse(gold, whole=False)
    candidates = [_parse(text, whole)]
    if whole and len(text) <= SHORT_CHARS and "\n" not in text:
        candidates.append(_parse(text, whole=False))
    correct = text == gold or any(verify(truth, parsed, timeout_seconds=PARSE_SECONDS) for parsed in candidates)
    return {"correct": bool(correct), "extracted": str(candidates[0][-1]) if candidates[0] else ""}


def _parse(text: str, whole: bool) -> list[Any]:
    """Expressions in ``text``; a final answer without delimiters is read as LaTeX first."""
    from math_verify import parse

    if not whole and not DELIMITED.search(text):
        found = parse(f"\\boxed{{{text}}}", parsing_timeout=PARSE_SECONDS)
        if any(not isinstance(item, str) for item in found):
            return list(found)
    return list(parse(text, parsing_timeout=PARSE_SECONDS))


def serve() -> None:
    """Answer one JSON line for each JSON line of stdin, after one line that says ready."""
    import resource

    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    print("ready", flush=True)
    for line in sys.stdin:
        try:
            reply = judge(**json.loads(line))
        except Exception:
            reply = {}
        print(json.dumps(reply), flush=True)


if __name__ == "__main__":
    serve()
