"""Where a response states its final answer. One mode says where to look; ``auto`` takes the first mark there is."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
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
    found = boxes(text)
    if not found:
        return None
    first = len(found) - 1
    while first > 0 and BETWEEN_BOXES.fullmatch(text, found[first - 1][2], found[first][0]):
        first -= 1
    (start, inside, _), end = found[first], found[-1][2]
    if first == len(found) - 1:
        return text[inside : end - 1].strip()
    return BOX.sub(r"\\boxed{", text[start:end])


def boxes(text: str) -> list[tuple[int, int, int]]:
    """Start, start of the content and end of every box, up to the first that is not closed."""
    found = []
    mark = BOX.search(text)
    while mark and (end := _closing_brace(text, mark.end())) is not None:
        found.append((mark.start(), mark.end(), end))
        mark = BOX.search(text, end)
    return found


def _closing_brace(text: str, position: int) -> int | None:
    """Index after the brace that closes a group opened just before ``position``."""
    depth = 1
    for match in BRACE.finditer(text, position):
        depth += (match[0] == "{") - (match[0] == "}")
        if depth == 0:
            return match.end()
    return None


MODES: dict[str, Callable[[str], str | None]] = {
    "boxed": last_boxes,
    "hashes": last_hashes,
    "tags": last_tags,
    "last_number": last_number,
}
EXTRACTIONS = ("auto", *MODES)
