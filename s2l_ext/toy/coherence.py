"""Does a response of the toy follow from itself? Exact, as every step is one operation on the result before it."""

from __future__ import annotations

import re

from s2l_ext.toy.tasks import OPERATORS

QUESTION = re.compile(r"[\d+\-*^,]+(?==\?)")
REASONING = re.compile(r"<think>(.*?)(?:</think>|$)", re.DOTALL)
STEP = re.compile(r"(\d)([+\-*^])(\d)=(\d)")


def steps_that_follow(prompt: str, response: str) -> tuple[int, int]:
    """Steps that follow, and all steps that were written. ``prompt`` holds the question, such as ``5-6+4=?``, or two
    chains, ``3+4,7-5=?``.

    A step follows when it starts from the result of the step before it (the first from the question's first digit),
    applies the question's next operation, and its result is right. So a wrong step does not spoil the ones after it,
    and an answer without steps has none.
    """
    found, thought = QUESTION.search(prompt), REASONING.search(response)
    if found is None or thought is None or not thought[1]:
        return 0, 0
    chains, counts = found[0].split(","), [0, 0]
    for place, written in enumerate(thought[1].split(",")):
        chain = chains[place] if place < len(chains) else ""
        for good in _judged(chain, written.split(";")):
            counts[0] += good
            counts[1] += 1
    return counts[0], counts[1]


def _judged(chain: str, steps: list[str]) -> list[bool]:
    value, judged = chain[:1], []
    for place, text in enumerate(steps):
        step, wanted = STEP.fullmatch(text), chain[1 + 2 * place : 3 + 2 * place]
        judged.append(step is not None and (step[1], step[2] + step[3]) == (value, wanted) and _is_right(step))
        value = step[4] if step else ""
    return judged


def _is_right(step: re.Match[str]) -> bool:
    return OPERATORS[step[2]](int(step[1]), int(step[3])) == int(step[4])
