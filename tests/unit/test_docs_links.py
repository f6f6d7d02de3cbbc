"""Documents point at things that exist, and the README's own recipe passes our checks."""

import re
from pathlib import Path

import pytest
import yaml

from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.preflight import check_pool
from s2l_ext.training.rules import check_against_verl

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted(
    path for path in ROOT.rglob("*.md") if not any(part.startswith(".") or part == "outputs" for part in path.parts)
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_resolve(document: Path) -> None:
    for target in LINK.findall(document.read_text()):
        if "://" in target or target.startswith("../../actions/"):  # pages that GitHub makes of the workflows
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name).resolve() if name else document
        assert path.exists(), target
        assert not anchor or anchor in anchors(path), target


@pytest.mark.slow
def test_recipe_of_the_readme_passes_our_checks(tmp_path) -> None:
    block = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert block is not None
    (tmp_path / "my_run.yaml").write_text("# @package _global_\n" + block.group(1))
    assert yaml.safe_load(block.group(1))["s2l"]["explorer"]
    cfg = compose_config("my_run", [], [tmp_path])
    assert check_against_verl(parse_s2l(cfg.s2l), cfg) == []
    check_pool(cfg, parse_s2l(cfg.s2l), available=8)
    assert cfg.trainer.test_freq > 0 and cfg.trainer.total_training_steps % cfg.trainer.save_freq == 0
    assert cfg.trainer.default_local_dir == "outputs/my_run"
