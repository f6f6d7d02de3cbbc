"""What the site generates: ``<!-- generated: NAME -->`` in a page becomes the text that NAME makes."""

from __future__ import annotations

import re

MARK = re.compile(r"^<!-- generated: (\w+) -->$", re.MULTILINE)


def filled(markdown: str) -> str:
    """The page with its marks replaced."""
    return markdown
