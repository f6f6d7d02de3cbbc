"""Every study of recipes/studies: it reads, its arms compose and pass the rules of `s2l check`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from s2l_ext.methods.registry import parse_s2l
from s2l_ext.studies.study.file import read_study
from s2l_ext.training.rules import check_against_verl

FOLDER = Path(__file__).parents[2] / "recipes" / "studies"
FILES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.slow
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_arm_composes_and_passes_the_rules(path: Path) -> None:
    study = read_study(path)
    for arm in study.runs:
        cfg = OmegaConf.create(OmegaConf.to_container(arm.cfg))
        cfg.data.seed = 1  # every run has one
        check_against_verl(parse_s2l(cfg.s2l), cfg)
    assert study.block.engine == ("verl" if path.stem.endswith("_qwen3") else "local")


def test_every_study_stands_in_the_readme_with_its_arms() -> None:
    table = dict(re.findall(r"^\| `(\w+)` \|.*\| (\d+) \|$", (FOLDER / "README.md").read_text(), re.M))
    assert table.keys() == {path.stem for path in FILES}
    counted = {path.stem: len(re.findall(r"^  [\w.]+:", _arms(path), re.M)) for path in FILES}
    assert {name: int(count) for name, count in table.items()} == counted


def _arms(path: Path) -> str:
    return path.read_text().split("\narms:\n")[1]
