"""What a reasoning trace must be before a rollout may start from it, and where in it the final answer begins.

A trace is the text of an assistant turn: reasoning (often between ``<think>`` and ``</think>``), then the final answer.
"""

from __future__ import annotations

import re
import time

from s2l_ext.data.answer_places import canonical, first_place, given_away, known_answer
from s2l_ext.rewards.code_blocks import READS
from s2l_ext.rewards.extraction import BETWEEN_BOXES, HASHES, TAGS, boxes, last_group, marked_answer
from s2l_ext.rewards.gold_reading import read_gold
from s2l_ext.rewards.math import TAIL_CHARS, grade

OPEN, CLOSE = "<think>", "</think>"
TAIL_TOKENS = 16
"""Tokens of a prompt's end that show whether the chat template opened or closed the thinking."""
GRADE_SECONDS = 30.0

MISSING = "missing"
CHAT_TOKEN = "chat token inside"
BROKEN_TAGS = "broken think tags"
UNFINISHED = "unfinished thinking"
NO_ANSWER = "no final answer"
ANSWER_ONLY = "answer only"
UNPARSABLE = "unparsable answer"
WRONG = "wrong answer"
TOO_SLOW = "not judged in time"

OPENING = re.compile(r"<\s*(?:think|thinking|thought)\s*>|<\|begin_of_thought\|>", re.IGNORECASE)
CLOSING = re.compile(r"<\s*/\s*(?:think|thinking|thought)\s*>|<\|end_of_thought\|>", re.IGNORECASE)
BLANK_CLOSE = re.compile(rf"\s*{CLOSE}\s*")
SOLUTION_TAGS = re.compile(r"<\|(?:begin|end)_of_solution\|>")
CHAT_TOKENS = re.compile(
    r"<\|(?:im_start|im_end|endoftext|eot_id|end_of_text|begin_of_text)\|>|<｜(?:begin|end)▁of▁sentence｜>|</s>"
)
WORD = re.compile(r"\w+")
FILLER = re.compile(r"answer|be|boxed|correct|equals|final|hence|is|it|must|result|so|solution|text|the|thus")
BLOCK = re.compile(r"^[ \t]*(`{3,}|~{3,})[^`\n]*\n([\s\S]*?)^[ \t]*\1[ \t]*$", re.MULTILINE)
PROGRAM = re.compile(r"^[ \t]*(?:(?:async[ \t]+)?def|class|int|void)[ \t]+(\w+)", re.MULTILINE)


def normalise(text: str) -> str:
    """The trace with one spelling of the think tags, without outer blanks and without end-of-turn tokens at its end.

    ``<thinking>``, ``<thought>`` and ``<|begin_of_thought|>`` become ``<think>``. A text that closes a tag which the
    chat template had opened gets its ``<think>`` back. A leading ``<think>`` stays: the rollout takes it off when the
    template opens one. Applying it twice changes nothing.
    """
    text = SOLUTION_TAGS.sub("", CLOSING.sub(CLOSE, OPENING.sub(OPEN, text))).strip()
    while ends := [match for match in CHAT_TOKENS.finditer(text) if match.end() == len(text)]:
        text = text[: ends[0].start()].rstrip()
    return f"{OPEN}\n{text}" if CLOSE in text and OPEN not in text else text


def after_prompt(text: str, prompt_end: str) -> str:
    """A trace, or its beginning, as what the assistant says after a prompt that ends with ``prompt_end``.

    Thinking that the chat template opened is not opened again. A template that closed it gets the text without tags.
    """
    end = prompt_end.rstrip()
    if end.endswith(OPEN) and text.lstrip().startswith(OPEN):
        return text.lstrip().removeprefix(OPEN).lstrip("\n")
    if end.endswith(CLOSE):
        return BLANK_CLOSE.sub("\n\n", text.replace(OPEN, "").lstrip()).lstrip()
    return text


def conclusion_of(trace: str) -> str:
    """What comes after ``</think>``; the whole trace when it has no think tags; empty when the thinking never ends."""
    if OPEN not in trace and CLOSE not in trace:
        return trace
    return trace.partition(CLOSE)[2]


def _incomplete(trace: str, marked: bool) -> str | None:
    """None if the thinking ends and a final answer follows: in a box, after ``####`` or in tags if ``marked``."""
    opened, closed = trace.count(OPEN), trace.count(CLOSE)
    if opened > 1 or closed > opened or (closed and trace.index(CLOSE) < trace.index(OPEN)):
        return BROKEN_TAGS
    if opened and not closed:
        return UNFINISHED
    conclusion = conclusion_of(trace)
    found = marked_answer(conclusion[-TAIL_CHARS:]) if marked else conclusion.strip()
    return None if found or (marked and found is not None) else NO_ANSWER


def is_answer_only(trace: str, answer: str | None = None) -> bool:
    """Whether nothing but words like "the final answer is" comes before the answer."""
    start = _final_start(trace, answer)
    reasoning = trace if start is None else trace[:start]
    words = WORD.findall(reasoning.replace(OPEN, " ").replace(CLOSE, " ").lower())
    return all(FILLER.fullmatch(word) for word in words)


def form_fault(trace: str, answer: str | None = None, marked: bool = True) -> str | None:
    """Why a normalised trace cannot be used, going by its form alone; None if it can. ``marked``: its final answer must
    be in a box, after ``####`` or in answer tags; ``answer`` shows "answer only" where it is not.
    """
    if not trace.strip():
        return MISSING
    if CHAT_TOKENS.search(trace):
        return CHAT_TOKEN
    return _incomplete(trace, marked) or (ANSWER_ONLY if is_answer_only(trace, answer) else None)


def answer_fault(trace: str, answer: str, seconds: float = GRADE_SECONDS) -> str | None:
    """Why a trace does not count as right; None if it does. A judgement that takes longer than ``seconds`` is given up:
    math-verify runs in a child process that is killed after its time is up.
    """
    started = time.monotonic()
    conclusion = conclusion_of(trace)
    if grade(conclusion, answer):
        return None
    if time.monotonic() - started > seconds:
        return TOO_SLOW
    stated = marked_answer(conclusion[-TAIL_CHARS:])
    if stated is None:
        return WRONG
    return UNPARSABLE if not stated or read_gold(stated).kind == "unread" else WRONG


def fault(trace: str, answer: str, marked: bool = True) -> str | None:
    """The first reason against a normalised trace, of its form or its answer; None when it can be used."""
    return form_fault(trace, answer, marked) or answer_fault(trace, answer)


def answer_start(trace: str, answer: str | None = None) -> int | None:
    """Offset in characters of the first place that gives the final answer away. None if no answer is seen.

    The final answer is, as for the reward, the last closed ``\\boxed{}`` (neighbouring boxes are one answer), else the
    last ``#### x``, else the last ``<answer>x</answer>``, else all that follows ``</think>``. A trace that marks the
    same answer earlier, in whatever spelling, has its answer begin there. Where no mark and only a program follows the
    thinking, the answer begins at the first fenced block that defines what the last one defines.

    With the right ``answer`` it begins where that is first announced ("the answer is 98") or computed (``= 186``; a
    whole number of two digits in the second half only, of one digit only as the last result or number before the mark).
    In a trace without any mark it begins where it comes first after an equals sign, else where it stands last. More
    than 200 characters, as tests of a program, are not looked for.
    """
    known = known_answer(answer)
    start = _final_start(trace, known)
    program = None if _marked(trace) else _program(trace)
    if program is not None:
        return program if start is None else min(start, program)
    earlier = given_away(trace[:start], known) if known and start is not None else None
    return start if earlier is None else earlier


def _final_start(trace: str, answer: str | None) -> int | None:
    """Where the final answer begins, or the same one is marked earlier."""
    kinds = _marked(trace)
    if not kinds:
        after = trace.rfind(CLOSE) + len(CLOSE)
        if CLOSE in trace:
            return after if trace[after:].strip() else None
        return first_place(trace, answer or "")
    final = last_group(kinds[0], trace, BETWEEN_BOXES)
    same = {canonical(content) for _, content, _ in final} | ({canonical(answer)} if answer else set())
    start = final[0][0]
    marks = [mark for marks in kinds for mark in marks]
    return min(first for first, content, end in marks if canonical(content) in same or first <= start < end)


def _marked(trace: str) -> list[list[tuple[int, str, int]]]:
    """Marked answers by kind of mark, the kind that counts first: start of the mark, what is inside, and its end."""
    kinds = [[(start, trace[inside : end - 1].strip(), end) for start, inside, end in boxes(trace)]]
    kinds += [[(m.start(), m[1].strip(), m.end()) for m in form.finditer(trace)] for form in (HASHES, TAGS)]
    return [marks for marks in kinds if marks]


def _program(trace: str) -> int | None:
    """The first complete block that defines or reads what the last one does; None if no block ends the trace."""
    blocks = list(BLOCK.finditer(trace))
    if not blocks or blocks[-1].start() < trace.rfind(CLOSE):
        return None
    wanted = _purpose(blocks[-1][2])
    return next((block.start() for block in blocks if _purpose(block[2]) & wanted), blocks[-1].start())


def _purpose(code: str) -> set[str]:
    """Functions and classes that a program defines, and whether it reads standard input."""
    return set(PROGRAM.findall(code)) | ({"<stdin>"} if READS.search(code) else set())
