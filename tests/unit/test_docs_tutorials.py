"""Every command of the tutorials: parsed, its configuration composed; those after ``<!-- run -->`` are run."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from s2l_ext.cli import COMMANDS
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.rules import check_against_verl

ROOT = Path(__file__).parents[2]
PAGES = [*sorted((ROOT / "docs" / "tutorials").glob("*.md")), ROOT / "docs" / "runs.md", ROOT / "docs" / "symptoms.md"]
BLOCK = re.compile(r"^(?P<run><!-- run -->\n)?```bash\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE)
OWN = {"advantage_scale"}
"""Recipes of a package that the tutorial installs; tests/unit/test_examples.py composes it."""
STARTS = {"s2l", "make", "python", "pip", "ray", "cat", "source"}


def blocks(page: Path, to_run: bool) -> Iterator[str]:
    yield from (block["text"] for block in BLOCK.finditer(page.read_text()) if bool(block["run"]) == to_run)


def commands(page: Path) -> list[str]:
    """Lines of the blocks that are not run, continued lines joined, `a && b` as two."""
    joined = "\n".join(blocks(page, to_run=False)).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in joined.splitlines()]
    return [command.strip() for line in lines if line and line[0] != "#" for command in line.split("&&")]


ALL = [(page, command) for page in PAGES if page.exists() for command in commands(page)]


def parsed(words: list[str]) -> tuple[tuple[str, ...], argparse.Namespace]:
    """The command and its arguments; SystemExit where they do not parse."""
    name = next((name for name in COMMANDS if tuple(words[: len(name)]) == name), None)
    assert name, f"s2l has no command {words[0]}"
    parser = argparse.ArgumentParser(prog=f"s2l {' '.join(name)}", exit_on_error=False)
    importlib.import_module(COMMANDS[name].module).add_arguments(parser)
    rest = words[len(name) :]
    return name, parser.parse_args(rest) if "--" in rest else parser.parse_intermixed_args(rest)


def composes(recipe: str, overrides: list[str]) -> None:
    cfg = compose_config(recipe, overrides)
    check_against_verl(parse_s2l(cfg.s2l), cfg)


def check(command: str) -> None:
    """AssertionError, SystemExit or S2LError for a command that would not start."""
    words = shlex.split(command)
    assert words[0] in STARTS, f"{words[0]} is not a command of these pages"
    if words[0] == "make":
        assert re.search(rf"^{words[1]}( [\w-]+)*:", (ROOT / "Makefile").read_text(), re.MULTILINE), words[1]
    if words[:3] == ["python", "-m", "s2l_ext.studies.local"]:
        composes(words[5], words[6:])
    if words[0] == "s2l":
        name, arguments = parsed(words[1:])
        if name in {("train",), ("check",)} and arguments.config_name not in OWN:
            composes(arguments.config_name, arguments.overrides)
        if name == ("submit",):
            check(" ".join(["s2l", *words[words.index("--") + 1 :]]))


@pytest.mark.slow
@pytest.mark.parametrize(("page", "command"), ALL, ids=[f"{page.stem}: {command[:70]}" for page, command in ALL])
def test_every_command_parses_and_its_configuration_composes(page: Path, command: str) -> None:
    try:
        check(command)
    except (Exception, SystemExit) as error:
        pytest.fail(f"{page.relative_to(ROOT)}: {command}: {error}")


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [page for page in PAGES if page.exists() and [*blocks(page, to_run=True)]], ids=lambda page: page.stem
)
def test_the_fast_blocks_run_one_after_the_other(page: Path, tmp_path: Path) -> None:
    inside = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    for text in blocks(page, to_run=True):
        script = ["bash", "-euo", "pipefail", "-c", text]
        done = subprocess.run(
            script, cwd=tmp_path, env=os.environ | inside, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, f"{page.relative_to(ROOT)}:\n{text}\n{done.stderr[-2000:]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        "s2l trian --config-name s2l_po/toy",
        "s2l check --config-name s2l_po/toys",
        "s2l check --config-name s2l_po/toy s2l.explorer.mix_step=4",
        "s2l eval --no-such-option",
        "make demos",
        "rm -rf /",
    ],
)
def test_a_command_that_no_longer_works_is_seen(command: str) -> None:
    with pytest.raises((Exception, SystemExit)):
        check(command)


def test_the_pages_have_commands_and_blocks_to_run() -> None:
    assert len(ALL) >= 30
    assert sum(len([*blocks(page, to_run=True)]) for page in PAGES if page.exists()) >= 6
