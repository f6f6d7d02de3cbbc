"""The coverage page names studies, arms, recipes and commands that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from s2l_ext.cli import COMMANDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "papers.md").read_text()
ROWS = [
    line for line in TEXT.splitlines() if line.startswith("|") and not line.startswith(("|---", "| in the", "| qu"))
]
STUDIES = re.findall(r"`studies/(\w+)`(?: \(([^)]*)\))?", TEXT)
FOLDERS = "|".join(path.name for path in (ROOT / "recipes").iterdir() if path.is_dir() and path.name != "studies")
RECIPES = sorted(set(re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", TEXT)))


def test_every_paper_has_its_tables() -> None:
    for heading, least in (("S2L-PO", 12), ("EXPO", 7), ("G2RPO-A", 13), ("Sparse-to-dense", 9)):
        section = TEXT.split(f"## {heading} (arXiv")[1].split("\n## ")[0]
        assert sum(line.startswith("|") for line in section.splitlines()) - 2 >= least
    assert all(row.count("|") in (4, 6) for row in ROWS), "a row has as many cells as its head"


@pytest.mark.parametrize(("name", "arms"), sorted(set(STUDIES)))
def test_the_study_has_the_arms(name: str, arms: str) -> None:
    study = yaml.safe_load((ROOT / "recipes" / "studies" / f"{name}.yaml").read_text())
    assert set(re.findall(r"`([^`]+)`", arms)) <= study["arms"].keys()


@pytest.mark.parametrize("name", RECIPES)
def test_the_recipe_exists(name: str) -> None:
    assert (ROOT / "recipes" / f"{name}.yaml").is_file()


def test_the_commands_exist() -> None:
    words = {tuple(found.split()) for found in re.findall(r"`s2l ((?:data )?\w+)", TEXT)}
    assert len(words) >= 6 and words <= COMMANDS.keys()


def test_every_study_stands_on_the_page() -> None:
    known = {path.stem for path in (ROOT / "recipes" / "studies").glob("*.yaml")} - {"smoke"}
    assert known == {name for name, _ in STUDIES}
