"""The site builds with ``--strict``; what is wrong in a page fails the build, which names it."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from mkdocs.commands.build import build
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, ConfigurationError, PluginError

from s2l_ext.cli import COMMANDS
from s2l_ext.config.limits import limited
from s2l_ext.config.parse import valid_keys
from s2l_ext.methods.registry import S2LConfig

ROOT = Path(__file__).parents[2]


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def warned() -> Iterator[Warnings]:
    handler = Warnings()
    logging.getLogger("mkdocs").addHandler(handler)
    yield handler
    logging.getLogger("mkdocs").removeHandler(handler)


def built(settings: Path, out: Path) -> Path:
    """``--strict`` counts log lines. vLLM's logging set-up switches existing loggers off, and a library behind verl's
    rollout servers sets the root logger to ERROR, which a logger without a level of its own follows."""
    logging.getLogger("mkdocs").setLevel(logging.WARNING)
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.split(".")[0] == "mkdocs" and isinstance(logger, logging.Logger):
            logger.disabled = False
    config = load_config(str(settings), strict=True, site_dir=str(out))
    config.plugins.on_startup(command="build", dirty=False)
    build(config)
    return out


@pytest.fixture(scope="module")
def reference(module_at) -> ModuleType:
    return module_at(ROOT / "scripts" / "docs_reference.py")


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A repository of three pages with the site's hooks."""
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# A page\n")
    (tmp_path / "README.md").write_text("# Home\n[page](docs/page.md#a-page), [file](run.yaml), [folder](scripts)\n")
    (tmp_path / "CHANGELOG.md").write_text("# Changes\n[home](README.md)\n")
    (tmp_path / "run.yaml").write_text("one: 1\n")
    whole = yaml.unsafe_load((ROOT / "mkdocs.yml").read_text())
    kept = {key: whole[key] for key in ("site_name", "hooks", "validation", "docs_dir")}
    nav = ["index.md", "page.md", "CHANGELOG.md"]
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(kept | {"nav": nav, "plugins": []}))
    return tmp_path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole site; strict, so a warning ends the build."""
    return built(ROOT / "mkdocs.yml", tmp_path_factory.mktemp("site"))


@pytest.mark.slow
def test_the_site_builds_and_every_page_has_its_place(site: Path) -> None:
    assert {"index.html", "metrics.html", "recipes/s2l_po/index.html", "search/search_index.js"} <= {
        path.relative_to(site).as_posix() for path in site.rglob("*")
    }


@pytest.mark.slow
def test_nothing_is_asked_of_another_host(site: Path) -> None:
    page = (site / "index.html").read_text()
    loaded = [part for part in page.split("<") if part.startswith(("script", "link", "img")) and "://" in part]
    assert loaded == []


def test_a_link_to_a_repository_file_opens_a_page_with_its_text(small: Path) -> None:
    out = built(small / "mkdocs.yml", small / "out")
    assert 'href="page/#a-page"' in (out / "index.html").read_text()
    assert 'href="source/run.yaml/"' in (out / "index.html").read_text()
    assert "one: 1" in (out / "source/run.yaml/index.html").read_text()
    assert "docs_site.py" in (out / "source/scripts/index.html").read_text()
    assert 'href=".."' in (out / "CHANGELOG/index.html").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gone.md", "../gone.py", "page.md#no-such-heading", "../README.md#no-such-heading"])
def test_a_dead_link_fails_the_build_and_is_named(small: Path, warned: Warnings, target: str) -> None:
    (small / "docs" / "page.md").write_text(f"# A page\n[there]({target})\n")
    with pytest.raises((Abort, ConfigurationError)):
        built(small / "mkdocs.yml", small / "out")
    [text] = warned.texts
    assert "page.md" in text and target.split("/")[-1].removeprefix("README.md") in text


def test_a_page_without_a_place_fails_the_build_and_is_named(small: Path, warned: Warnings) -> None:
    (small / "docs" / "lost.md").write_text("# Lost\n")
    with pytest.raises(Abort):
        built(small / "mkdocs.yml", small / "out")
    assert "lost.md" in warned.texts[0]


def test_lists_and_tables_need_no_blank_line_before_them(small: Path) -> None:
    (small / "docs" / "page.md").write_text(
        "# A page\nText.\n- one\n  more of it\n- two\n\nText.\n| a |\n|---|\n| `x\\|y` |\n"
    )
    page = (built(small / "mkdocs.yml", small / "out") / "page" / "index.html").read_text()
    assert page.count("<li>") >= 2 and "<table>" in page and "<code>x|y</code>" in page


@dataclass(frozen=True)
class Undescribed:
    """A block."""

    one: int = limited(3, at_least=1)
    """The first."""
    two: bool = True


@dataclass(frozen=True)
class Inherits(Undescribed):
    """A variant."""


def test_the_reference_shows_default_range_and_text_and_names_an_undescribed_key(reference: ModuleType) -> None:
    first, second = dataclasses.fields(Undescribed)
    assert "| `one` | `3` | whole number >= 1 | The first. |" in reference.table("s2l.new", [(Undescribed, first)])
    with pytest.raises(PluginError, match=r"s2l\.new\.two has no description.*Undescribed"):
        reference.table("s2l.new", [(Inherits, second)])


@pytest.mark.slow
def test_every_key_that_parses_is_in_the_reference(reference: ModuleType) -> None:
    text = reference.config()
    for key in valid_keys(S2LConfig, "s2l"):
        assert f"`{key}`" in text or f"| `{key.rsplit('.', 1)[1]}` |" in text, key
    assert "| `type` | `accuracy` | `accuracy`, `constant`, `adaptive_target` |" in text
    assert "| `mix_steps` | `8` | whole number >= 1 |" in text and "| `n_gpus_per_node` | `1` |" in text


def test_the_reference_has_every_command_and_names_an_option_without_help(reference: ModuleType) -> None:
    text = reference.cli()
    assert all(f"## `s2l {' '.join(words)}`" in text for words in COMMANDS)
    parser = argparse.ArgumentParser()
    silent = parser.add_argument("--silent")
    with pytest.raises(PluginError, match=r"s2l new --silent has no help text"):
        reference.option("s2l new", silent, parser)


def test_a_mark_that_nothing_makes_is_named(reference: ModuleType) -> None:
    with pytest.raises(PluginError, match="generated: gone -->: choose from api, config, cli"):
        reference.filled("# Page\n<!-- generated: gone -->\n")


def test_every_metric_that_a_page_names_is_in_the_metrics_page() -> None:
    name = re.compile(r"`(s2l/[\w/<>@]+)`")
    listed = set(name.findall((ROOT / "docs" / "metrics.md").read_text()))
    forms = [re.compile(re.sub(r"<\w+>", r"[^/]+", one)) for one in listed]
    for page in (ROOT / "docs").rglob("*.md"):
        for metric in name.findall(page.read_text()):
            known = metric in listed or any(form.fullmatch(metric) for form in forms)
            assert known or metric.endswith(("/", ">")), f"{page.relative_to(ROOT)}: docs/metrics.md has no {metric}"
