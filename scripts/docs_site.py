"""MkDocs hook: the site is made of the files that are read on the code host.

Pages outside ``docs/`` (README, recipes, examples, CONTRIBUTING, ...) become pages of the site under their own path.
Any other repository file that a page links to becomes a page that shows it. So every link works on both sides, and
the site needs no code host.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from docs_reference import filled  # MkDocs looks for imports of a hook in its folder
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
OUTSIDE = ("CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md", "recipes/*/README.md", "examples/*/README.md")
CODE = r"(?P<code>^[ ]*```.*?^[ ]*```|`[^`\n]*`)"
LINK = re.compile(CODE + r"|(?P<head>\]\()(?P<target>[^)\s#:]+)(?P<anchor>#[^)\s]*)?\)", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\|.*\|\s*$")
ITEM = re.compile(r"^(?:[-*]|\d+\.) ")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Adds the pages from outside ``docs/`` and a page for every other file that a page links to."""
    pages = site_pages(config)
    for path, uri in pages.items():
        if not path.startswith("docs/"):
            files.append(File.generated(config, uri, content=(ROOT / path).read_text()))
    for path in sorted({path for page in pages for path in linked(page)} - set(pages)):
        shown = File.generated(config, source_uri(path), content=shows(path))
        shown.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(shown)
    return files


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links in the site's terms, generated parts filled in, GitHub's blocks in Python-Markdown's."""
    pages = site_pages(config)
    here = next((path for path, uri in pages.items() if uri == page.file.src_uri), None)
    if here is None:
        return markdown
    text = filled(markdown)
    if here == "README.md":
        text = "".join(line for line in text.splitlines(keepends=True) if not line.startswith("[!["))
    return separated(with_site_links(text, here, page.file.src_uri, pages))


def site_pages(config: MkDocsConfig) -> dict[str, str]:
    """Repository path of every page -> its path in the site."""
    docs = Path(config.docs_dir)
    inside = sorted(path.relative_to(docs).as_posix() for path in docs.rglob("*.md"))
    outside = [path.relative_to(ROOT).as_posix() for name in OUTSIDE for path in sorted(ROOT.glob(name))]
    return {"README.md": "index.md"} | {f"docs/{path}": path for path in inside} | {path: path for path in outside}


def linked(page: str) -> Iterator[str]:
    """Repository files and folders that a page links to, the documents' own pictures left out."""
    for link in LINK.finditer((ROOT / page).read_text()):
        path = target_of(link, page) if link["head"] else None
        if path is not None and not (path.startswith("docs/") and not path.endswith(".md")):
            yield path


def target_of(link: re.Match[str], page: str) -> str | None:
    """Repository path of a link's target; None if the repository has no such file."""
    path = os.path.normpath((Path(page).parent / link["target"]).as_posix())
    return path if not path.startswith("..") and (ROOT / path).exists() else None


def with_site_links(text: str, page: str, uri: str, pages: dict[str, str]) -> str:
    """The text of a page with its links as the site has them; MkDocs names those whose target does not exist."""

    def replaced(link: re.Match[str]) -> str:
        path = target_of(link, page) if link["head"] else None
        if path is None:
            return link[0]
        inside = path.removeprefix("docs/") if path.startswith("docs/") else source_uri(path)
        target = os.path.relpath(pages.get(path, inside), Path(uri).parent)
        return f"{link['head']}{target}{link['anchor'] or ''})"

    return LINK.sub(replaced, text)


def source_uri(path: str) -> str:
    return f"source/{path}.md"


def shows(path: str) -> str:
    """A page with a file's text, or the names in a folder; search leaves it out."""
    whole = ROOT / path
    if whole.is_dir():
        body = "\n".join(f"- `{item.name}`" for item in sorted(whole.iterdir()) if item.name != "__pycache__")
    else:
        words = {".py": "python", ".yaml": "yaml", ".sh": "bash", ".toml": "toml", ".sbatch": "bash"}
        body = f"````{words.get(whole.suffix, 'text')}\n{whole.read_text().rstrip()}\n````"
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n{body}\n"


def separated(text: str) -> str:
    """A blank line before each list and table, which Python-Markdown wants and GitHub does not."""
    lines: list[str] = []
    fenced = False
    for line in text.splitlines():
        fenced ^= line.lstrip().startswith("```")
        before = lines[-1] if lines else ""
        for kind in (ROW, ITEM):
            if not fenced and kind.match(line) and before.strip() and not inside(kind, lines):
                lines.append("")
        lines.append(line.replace("\\|", "|") if not fenced and ROW.match(line) and "`" in line else line)
    return "\n".join(lines) + "\n"


def inside(kind: re.Pattern[str], lines: list[str]) -> bool:
    """The block that the last lines belong to is of this kind already."""
    for line in reversed(lines):
        if not line.strip():
            return False
        if kind.match(line):
            return True
        if kind is ROW:
            return False
    return False
