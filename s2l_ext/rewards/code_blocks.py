"""Which text of a response is the program.

One choice, made from the text and from what the tests call: no block is ever run to see whether it passes, so a
response that writes several solutions is judged by one of them.
"""

from __future__ import annotations

import ast
import bisect
import re
import textwrap
from dataclasses import dataclass, field
from itertools import takewhile
from typing import NamedTuple

from s2l_ext.rewards.code_tests import FunctionTests, InputOutput, Tests

PYTHON_TAGS = frozenset(("", "python", "python3", "py"))
FENCE = re.compile(r"(`{3,}|~{3,})([^`\n]*)")
TAG = re.compile(r"\{?\.?[\w+#.-]+(?:\}|\s.*)?")
STRINGS = re.compile(r"#.*|\"\"\"|'''|\"(?:\\.|[^\"\\\n])*\"?|'(?:\\.|[^'\\\n])*'?")
NO_CODE = re.compile(r"#.*|(\"\"\"|''')[\s\S]*?\1|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])*'")
DEFINED = re.compile(r"^(?:async[ \t]+def|def|class)[ \t]+(\w+)", re.MULTILINE)
ASSIGNED = re.compile(r"^(\w+)[ \t]*(?::[^=\n]+)?=(?!=)", re.MULTILINE)
IMPORTED = re.compile(r"^(?:from[ \t]+\S+[ \t]+)?import[ \t]+(\([^)]{0,2000}\)|.+)", re.MULTILINE)
BOUND = re.compile(r"(?<![.\w])(\w+)[ \t]*=(?!=)")
USED = re.compile(r"(?<![.\w])(\w+)[ \t]*[.(\[]|@(\w+)")
READS = re.compile(r"\binput[ \t]*\(|\bstdin\b(?![ \t]*=)|\bopen[ \t]*\([ \t]*0")
PRINTS = re.compile(r"\bprint[ \t]*\(|\bstdout\b")
CODE_LINE = re.compile(
    r"(?:async[ \t]+def|def|class)[ \t]+\w+.*|import[ \t]+[\w., ]+|from[ \t]+[\w.]+[ \t]+import\b.*|@\w+.*"
    r"|#.*|[ \t]+\S.*|\w+[ \t]*=[^=].*|print[ \t]*\(.*"
)


@dataclass
class Block:
    """A fenced block of Python, or text that stands for one."""

    code: str
    tagged: bool
    defined: set[str] = field(default_factory=set)
    as_written: str = ""
    """With its indentation, which ``code`` loses where it is a whole program in a list."""

    def __post_init__(self) -> None:
        self.code = self.as_written = self.code.lstrip("\ufeff")
        if _indented_whole(self.code):
            self.code = textwrap.dedent(self.code)
        self.defined = set(DEFINED.findall(self.code))

    def is_body(self) -> bool:
        return self.as_written.lstrip("\n").startswith((" ", "\t"))


def extract_program(text: str, tests: Tests | None = None) -> tuple[str, bool]:
    """The program in a response, and whether it was in a fenced block.

    Blocks tagged ``python``, ``python3``, ``py`` or not at all count; others are passed over. Of these it is

    - for tests that call a function or class: the last block that defines it, else the last one that is the body of a
      function, else the last;
    - for tests of standard input: the last block that reads it, else the last that prints, else the last;
    - without ``tests``: the last tagged block, else the last.

    Functions, classes and imports that this block uses and other blocks define come along. Code before a fence that
    nothing opened is a block (the prompt had opened it). Without a closed block it is what follows the last opening
    fence of Python (a response cut short), else the whole text.
    """
    text = text.removeprefix("\ufeff")
    closed, cut = _fenced(text)
    names = _called(tests)
    if cut is not None and (not closed or (names and not _defines(closed, names) and names & cut.defined)):
        closed = [*closed, cut]
    if not closed:
        return text, False
    chosen = _chosen(closed, tests, names)
    last = closed[chosen[-1]]
    if isinstance(tests, FunctionTests) and tests.prompt and last.is_body() and not names & last.defined:
        return last.as_written, True
    return _joined(closed, chosen), True


def _called(tests: Tests | None) -> set[str]:
    """Names that function tests may call: the entry point, else every name in their source."""
    if not isinstance(tests, FunctionTests):
        return set()
    return {tests.entry_point} if tests.entry_point else set(re.findall(r"\w+", NO_CODE.sub(" ", tests.source)))


def _defines(blocks: list[Block], names: set[str]) -> list[int]:
    """For each name the last block that defines it; one that assigns it counts where no ``def`` or ``class`` does."""
    last = {name: number for number, block in enumerate(blocks) for name in block.defined & names}
    if not last and len(names) == 1:
        last = {name: n for n, block in enumerate(blocks) for name in names & set(ASSIGNED.findall(block.code))}
    return sorted(set(last.values()))


def _chosen(blocks: list[Block], tests: Tests | None, names: set[str]) -> list[int]:
    if found := _defines(blocks, names):
        return found
    if isinstance(tests, InputOutput):
        wanted = [[bool(pattern.search(block.code)) for block in blocks] for pattern in (READS, PRINTS)]
    elif isinstance(tests, FunctionTests):
        wanted = [[block.is_body() for block in blocks]]
    else:
        wanted = []
    for marks in (*wanted, [block.tagged for block in blocks]):
        if True in marks:
            return [len(marks) - 1 - marks[::-1].index(True)]
    return [len(blocks) - 1]


def _joined(blocks: list[Block], chosen: list[int]) -> str:
    """The chosen blocks with the others that define what they use, in the order of the text, imports first."""
    if len(blocks) == 1:
        return blocks[0].code
    homes: dict[str, list[int]] = {}
    for number, block in enumerate(blocks):
        for name in block.defined:
            homes.setdefault(name, []).append(number)
    have: set[str] = set().union(*(blocks[number].defined for number in chosen))
    picked, queue, used = set(chosen), list(chosen), set[str]()
    while queue:
        number = queue.pop()
        names = _used(blocks[number].code)
        used |= names
        for name in (names & homes.keys()) - have:
            home = homes[name][max(0, bisect.bisect_left(homes[name], number) - 1)]
            have |= blocks[home].defined
            picked.add(home)
            queue.append(home)
    own = _imports([blocks[number] for number in picked], used)
    others = [block for number, block in enumerate(blocks) if number not in picked]
    imports = _imports(others, used.difference(have, *own.values()))
    return join_sources("".join(imports), *(blocks[number].code for number in sorted(picked)))


def join_sources(*sources: str) -> str:
    """The sources one after another; their ``from __future__`` lines come first, where Python wants them."""
    parts = [_without_future(source) if "__future__" in source else ([], source) for source in sources]
    return "".join([*(f"{line}\n" for lines, _ in parts for line in lines), *(rest for _, rest in parts)])


def _without_future(source: str) -> tuple[list[str], str]:
    """The statements at the beginning that import from ``__future__``, and the source with ``pass`` in their place."""
    try:
        body = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [], source
    found = list(takewhile(_is_future, body[1:] if body and _is_docstring(body[0]) else body))
    lines = source.encode().splitlines(keepends=True)
    for node in reversed(found):
        end = node.end_lineno or node.lineno
        before, after = lines[node.lineno - 1][: node.col_offset], lines[end - 1][node.end_col_offset :]
        lines[node.lineno - 1 : end] = [before + b"pass" + after]
    return [ast.unparse(node) for node in found], b"".join(lines).decode()


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _used(code: str) -> set[str]:
    """Names that code calls, subscripts, decorates with or takes attributes of, but does not assign."""
    code = NO_CODE.sub(_keep_short_strings, code)
    return {name for pair in USED.findall(code) for name in pair if name}.difference(BOUND.findall(code))


def _keep_short_strings(match: re.Match[str]) -> str:
    """F-strings call functions; comments and docstrings only mention them."""
    return " " if match[1] or match[0].startswith("#") else match[0]


def _imports(blocks: list[Block], wanted: set[str]) -> dict[str, set[str]]:
    """Import statements for wanted names, with the names that they give."""
    found = {}
    for block in blocks:
        for match in IMPORTED.finditer(block.code):
            parts = [part.split() for part in match[1].strip("()").split("#")[0].split(",")]
            names = {words[-1].split(".")[0] for words in parts if words}
            if names & wanted:
                found[f"{match[0]}\n"] = names
    return found


class _Fence(NamedTuple):
    """A line that begins with a fence: its number, the characters of the fence, what it says of the language."""

    line: int
    marks: str
    tag: str
    opens: bool
    """It names a language; text after a blank (````` ``` so it works`````) does not."""


def _fences(lines: list[str]) -> list[_Fence]:
    found = []
    for number, line in enumerate(lines):
        match = FENCE.fullmatch(line.strip()) if "```" in line or "~~~" in line else None
        if match is None:
            continue
        tag = (match[2].split() or [""])[0].lower().strip("{}.")
        opens = TAG.fullmatch(match[2]) is not None or (tag != "" and tag in PYTHON_TAGS)
        found.append(_Fence(number, match[1], tag, opens))
    return found


def _fenced(text: str) -> tuple[list[Block], Block | None]:
    """Closed blocks of Python, and what follows a last fence tagged as Python that is never closed."""
    closed: list[Block] = []
    lines = text.split("\n")
    fences = _fences(lines)
    at = _leading(lines, fences, closed)
    strings = True
    while at < len(fences):
        first = fences[at]
        end = _closing(lines, fences, at, strings and first.tag in PYTHON_TAGS)
        if end is None and strings:
            strings = False  # a string that never ends: fences count everywhere from here on
            continue
        if end is None:
            rest = "\n".join(lines[first.line + 1 :])
            return closed, Block(rest, tagged=True) if first.tag and first.tag in PYTHON_TAGS else None
        if first.tag in PYTHON_TAGS:
            code = "".join(f"{line}\n" for line in lines[first.line + 1 : fences[end].line])
            closed.append(Block(code, tagged=first.tag != ""))
        at = end if fences[end].opens else end + 1
    return closed, None


def _leading(lines: list[str], fences: list[_Fence], closed: list[Block]) -> int:
    """Takes code that ends at a fence which nothing opened; the number of fences used up."""
    if not fences or fences[0].opens or (len(fences) > 1 and not fences[1].opens):
        return 0
    before = lines[: fences[0].line]
    start = next((line for line in before if line.strip()), "")
    if not CODE_LINE.fullmatch(start.lstrip("\ufeff")):
        return 0
    closed.append(Block("".join(f"{line}\n" for line in before), tagged=True))
    return 1


def _closing(lines: list[str], fences: list[_Fence], at: int, strings: bool) -> int | None:
    """The fence that ends the block of fence ``at``; with ``strings`` none inside a triple-quoted string does."""
    inside, line = "", fences[at].line + 1
    for index in range(at + 1, len(fences)):
        fence = fences[index]
        if strings:
            for each in lines[line : fence.line]:
                inside = _string_after(each, inside)
            line = fence.line
        if not inside and fence.marks.startswith(fences[at].marks):
            return index
    return None


def _string_after(line: str, inside: str) -> str:
    """The triple quotes that are open at the end of a line; ``inside``: those at its beginning."""
    position = 0
    while position < len(line) and (inside or '"' in line or "'" in line):
        if inside:
            end = re.compile(r"\\.|" + inside).search(line, position)
            if end is None:
                return inside
            position, inside = end.end(), inside if end[0].startswith("\\") else ""
            continue
        match = STRINGS.search(line, position)
        if match is None:
            return ""
        position, inside = match.end(), match[0] if match[0] in ('"""', "'''") else ""
    return inside


def _indented_whole(code: str) -> bool:
    """Whether a block is indented as a whole program would be in a list, not as the body of a function."""
    inner = re.search(r"^[ \t]+(?:def|class|import|from)[ \t]", code, re.MULTILINE)
    return code.startswith((" ", "\t")) and inner is not None
