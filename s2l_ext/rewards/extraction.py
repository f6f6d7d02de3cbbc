"""Where a response states its final answer. One mode says where to look; ``auto`` takes the first mark there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BOX = "\\boxed{"
BETWEEN_BOXES = re.compile(r"(?:\s|\$|,|;|\\quad|\\text\{\s*(?:and|or)\s*\}|and|or|\\[()\[\]])*")
HASHES = re.compile(r"^####[ \t]+(\S.*?)\s*$", re.MULTILINE)
TAGS = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL)
UNSIGNED = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?|\.[0-9]+"
MINUS = "\u2212"
"""What models write for a minus sign as often as the hyphen."""
NUMBER = re.compile(
    rf"(?:(?<![\w)\]}}.])[-{MINUS}])?"  # 5-3 ends in 3, not in -3
    rf"(?:\\[dtc]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}|(?:{UNSIGNED})(?:/[0-9]+(?![0-9.,]*[0-9]))?)"
)


@dataclass(frozen=True)
class Extracted:
    """What is to be judged.

    Attributes:
        answer: a final answer, or (``whole``) the text in which math-verify has to find one.
        found: the answer stood where the mode looks for it; an empty box holds none.
    """

    answer: str
    found: bool
    whole: bool = False


def extract(text: str, mode: str) -> Extracted:
    """The final answer of ``text`` as ``mode`` (a key of :data:`MODES`, or ``auto``) sees it.

    Under ``auto`` a text without any mark is handed on whole; under the other modes it has no answer.
    """
    answer = marked_answer(text) if mode == "auto" else MODES[mode](text)
    if answer is not None:
        return Extracted(answer, bool(answer))
    return Extracted(text.strip(), False, whole=True) if mode == "auto" else Extracted("", False)


def marked_answer(text: str) -> str | None:
    """The final answer that ``text`` marks as such (box, else ``####``, else tags), or None."""
    return next((found for look in (last_boxes, last_hashes, last_tags) if (found := look(text)) is not None), None)


def last_hashes(text: str) -> str | None:
    """What follows the last ``####`` that begins a line."""
    found = HASHES.findall(text)
    return str(found[-1]) if found else None


def last_tags(text: str) -> str | None:
    """What the last ``<answer>...</answer>`` holds."""
    found = TAGS.findall(text)
    return str(found[-1]) if found else None


def last_number(text: str) -> str | None:
    """The last integer, decimal or simple fraction; a minus sign belongs to it unless it subtracts."""
    found = NUMBER.findall(text)
    return str(found[-1]).replace(MINUS, "-") if found else None


def last_boxes(text: str) -> str | None:
    """Content of the last closed box; boxes with only "and" or a comma between them are one answer, kept whole."""
    spans: list[tuple[int, int]] = []
    start = text.find(BOX)
    while start >= 0:
        end = closing_brace(text, start + len(BOX))
        if end is None:
            break
        spans.append((start, end))
        start = text.find(BOX, end)
    if not spans:
        return None
    first = len(spans) - 1
    while first > 0 and BETWEEN_BOXES.fullmatch(text, spans[first - 1][1], spans[first][0]):
        first -= 1
    if first == len(spans) - 1:
        return text[spans[-1][0] + len(BOX) : spans[-1][1] - 1].strip()
    return text[spans[first][0] : spans[-1][1]]


def closing_brace(text: str, position: int) -> int | None:
    """Index after the brace that closes a group opened just before ``position``."""
    depth = 1
    while position < len(text):
        character = text[position]
        position += 2 if character == "\\" else 1
        depth += (character == "{") - (character == "}")
        if depth == 0:
            return position
    return None


MODES: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxes,
    "hashes": last_hashes,
    "tags": last_tags,
    "last_number": last_number,
}
EXTRACTIONS = ("auto", *MODES)
