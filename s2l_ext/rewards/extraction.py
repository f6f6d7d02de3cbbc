"""Where a response states its final answer. One mode says where to look; ``auto`` takes the last mark there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

OPENED, CLOSED = "<think>", "</think>"
MARKED_CHARS = 1_000_000
"""Marks are looked for in this many characters from the end."""

BOX = re.compile(r"\\(?:boxed|fbox|framebox(?:\[[^\]\n]{0,20}\]){0,2})\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
BETWEEN_BOXES = re.compile(r"(?:\s|\$|,|;|\\quad|\\text\{\s*(?:and|or)\s*\}|and|or|\\[()\[\]])*")
HASHES = re.compile(r"^####[ \t]+(\S.*)$", re.MULTILINE)
TAGS = re.compile(r"<answer>((?:(?!<answer>).)*?)</answer>", re.DOTALL)
ANSWER_LABEL = re.compile(r"[Aa](?<!\w.)(?i:nswer)\b[*_\t ]*[:\uff1a][*_\t }]*")
LEAD_CHARS = 80
LEAD = re.compile(
    r"(?:^|[.!?{>)])[^\w\n$\\]*(?:(?:the|so|and|but|thus|hence|therefore|then|wait|no|actually|my|our|final|correct|right"
    r"|short|exact|numerical|simplified|overall|full)[*_ ,]+)*\Z",
    re.IGNORECASE | re.MULTILINE,
)
"""What stands before ``answer:`` in small letters. ``Let me verify the answer: 2 + 3 = 5`` states none."""
LABELS = 50
"""Of a hostile text no more labels than these are read, from the end."""
EMPHASIS = re.compile(r"(\*\*|__|`+)(.*?)\1[.]?|\*\*(.*)|(.*?)(?:\*\*|__|`)[.]?", re.DOTALL)
UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
MINUS = "\u2212"
"""What models write for a minus sign as often as the hyphen."""
NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-{MINUS}])?"  # 5-3 ends in 3, not in -3
    rf"(?:\\[dtc]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}|(?:{UNSIGNED})(?:/[0-9]+(?![0-9.,]*[0-9]))?)"
)
FENCE = re.compile(r"\s*(`{3,})(?i:markdown|md|latex|tex|math|text|txt|plaintext)?[ \t]*\n(.*)\n[ \t]*\1\s*", re.DOTALL)
HEADING = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}")
"""``#### Step 2`` is a heading of Markdown, ``#### \\frac{1}{2}`` is none."""

Mark = tuple[int, str]
"""Where the answer begins, and the answer."""
Box = tuple[int, int, int]
"""Start, start of the content and end."""
Spanned = TypeVar("Spanned", bound=tuple[int, Any, int])


@dataclass(frozen=True)
class Extracted:
    """A final answer, or (``whole``) the text in which math-verify has to find one. ``found``: it stood where the mode
    looks for it; an empty box holds none.
    """

    answer: str
    found: bool
    whole: bool = False


def extract(text: str, mode: str, thinking: str = "auto") -> Extracted:
    """The final answer of ``text`` as ``mode`` and ``thinking`` (as of :class:`math_settings.Judging`) see it.

    Under ``auto`` a text without any mark is passed on whole; under the other modes it has no answer.
    """
    said = _without_fence(outside_thinking(text, thinking == "opened"))
    answer = _answer(said[-MARKED_CHARS:], mode)
    if answer is not None:
        return Extracted(answer, bool(answer))
    return Extracted(said.strip(), False, whole=True) if mode == "auto" else Extracted("", False)


def _answer(text: str, mode: str) -> str | None:
    if mode == "auto":
        return marked_answer(text)
    if mode == "last_number":
        return last_number(text)
    mark = MARKS[mode](text)
    return mark and mark[1]


def outside_thinking(text: str, opened: bool = False) -> str:
    """What a response says beside its thinking: what follows the last ``</think>``, up to a ``<think>`` after that.
    ``opened``: the prompt opened the thinking, so a response that never closes it says nothing.
    """
    _, closed, said = text.rpartition(CLOSED)
    return "" if opened and not closed else said.partition(OPENED)[0]


def _without_fence(text: str) -> str:
    """What a fence of Markdown holds, where it holds all of ``text`` and no other fence; fences of code stay."""
    match = FENCE.fullmatch(text) if "```" in text[:100] else None
    return text if match is None or match[1] in match[2] else match[2]


def marked_answer(text: str) -> str | None:
    """The final answer that ``text`` marks: of box, tags, answer line, hashes the last (the inner if nested), or None.

    Hashes with words (``#### 20 apples``) are taken only at the end of a text in which nothing else is marked.
    """
    marks = [mark for look in (_box, _tags, _answer_line) if (mark := look(text)) is not None]
    hashes = _hashes(text)
    if hashes is not None and not (marks and HEADING.search(hashes[1])):
        marks.append(hashes)
    return max(marks)[1] if marks else None


def last_number(text: str) -> str | None:
    """The last integer, decimal or simple fraction; a minus sign belongs to it unless it subtracts."""
    found = NUMBER.findall(text)
    return str(found[-1]).replace(MINUS, "-") if found else None


def _hashes(text: str) -> Mark | None:
    """What follows the last ``####`` that begins a line without words; with words it must end the text."""
    found = list(HASHES.finditer(text))
    answers = [line for line in found if not HEADING.search(line[1])]
    if not answers and found and not text[found[-1].end() :].strip():
        answers = found
    return (answers[-1].start(1), answers[-1][1].strip()) if answers else None


def _tags(text: str) -> Mark | None:
    """What the last ``<answer>...</answer>`` holds."""
    end = text.rfind("</answer>")
    start = text.rfind("<answer>", 0, max(end, 0))
    inside = start + len("<answer>")
    return None if start < 0 else (inside, text[inside:end].strip())


def _answer_line(text: str) -> Mark | None:
    """What follows the last ``Answer:`` on its line (the form that DAPO's prompt asks for)."""
    for label in reversed(list(ANSWER_LABEL.finditer(text))[-LABELS:]):
        if label[0][0] == "a" and not LEAD.search(text[max(label.start() - LEAD_CHARS, 0) : label.start()]):
            continue
        end = text.find("\n", label.end())
        said = text[label.end() : len(text) if end < 0 else end].partition("</answer>")[0].strip()
        if said:
            return label.end(), without_emphasis(said)
    return None


def without_emphasis(text: str) -> str:
    match = EMPHASIS.fullmatch(text)
    return text if match is None else next(group for group in match.groups()[1:] if group is not None).strip()


def _box(text: str) -> Mark | None:
    """Content of the last closed box; boxes with only "and" or a comma between them are one answer, kept whole."""
    found = last_group(boxes(text), text, BETWEEN_BOXES)
    if not found:
        return None
    (start, inside, _), end = found[0], found[-1][2]
    if len(found) == 1:
        return inside, text[inside : end - 1].strip()
    return inside, BOX.sub(r"\\boxed{", text[start:end])


def boxes(text: str) -> list[Box]:
    """Every closed box that is in no other closed box."""
    starts = {mark.end(): mark.start() for mark in BOX.finditer(text)}
    found: list[Box] = []
    opened: list[int] = []
    for brace in BRACE.finditer(text, min(starts) - 1) if starts else ():
        if brace[0] == "{":
            opened.append(brace.end())
        elif brace[0] == "}" and opened and (inside := opened.pop()) in starts:
            while found and found[-1][0] > starts[inside]:
                found.pop()
            found.append((starts[inside], inside, brace.end()))
    return found


def last_group(marks: list[Spanned], text: str, between: re.Pattern[str]) -> list[Spanned]:
    """The last mark (start first, end third), and those right before it with no more than ``between`` in between."""
    first = len(marks) - 1
    while first > 0 and between.fullmatch(text, marks[first - 1][2], marks[first][0]):
        first -= 1
    return marks[max(first, 0) :]


MARKS: dict[str, Callable[[str], Mark | None]] = {
    "boxed": _box,
    "hashes": _hashes,
    "tags": _tags,
    "answer_line": _answer_line,
}
