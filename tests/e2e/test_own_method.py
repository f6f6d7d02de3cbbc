"""examples/add_a_method on the real stack: trained with, killed, resumed; the same numbers as without the kill."""

import os
import sys
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.long

EXAMPLE = Path(__file__).parents[2] / "examples" / "add_a_method"
SIZE = "s2l/advantage_scale/size"
STEPS = 4


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The example on PYTHONPATH with the entry point of its pyproject.toml, as ``pip install`` leaves it."""
    place = tmp_path_factory.mktemp("installed")
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    about = place / f"advantage_scale-{project['version']}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = project["entry-points"]["s2l.methods"]
    (about / "entry_points.txt").write_text(
        "[s2l.methods]\n" + "".join(f"{name} = {value}\n" for name, value in points.items())
    )
    (place / "advantage_scale.py").write_text((EXAMPLE / "advantage_scale.py").read_text())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join([str(place), *filter(None, [os.environ.get("PYTHONPATH")])]))
        yield place


@pytest.fixture(scope="module")
def runs(installed, launch, kill_and_resume, small_run):
    command = [sys.executable, "-m", "s2l_ext.cli", "train", "--config-dir", str(EXAMPLE)]
    words = [*command, "--config-name", "advantage_scale"]
    overrides = (*small_run, f"trainer.total_training_steps={STEPS}", "trainer.save_freq=2")
    whole = launch("advantage_scale", *overrides, command=words).wait()
    before, resumed = kill_and_resume("advantage_scale", *overrides, command=words)
    return whole.steps(), before, resumed.steps()


def test_the_size_of_advantages_is_logged_every_step(runs):
    whole, _, _ = runs
    assert sorted(whole) == list(range(1, STEPS + 1))
    assert all(whole[step][SIZE] > 0 for step in whole)


def test_advantages_are_divided_by_it(runs):
    """verl logs the largest advantage after the division; GRPO's own is at most sqrt(G - 1) = 1.73 with G = 4."""
    whole, _, _ = runs
    for step in whole.values():
        largest = step["critic/advantages/max"] * max(step[SIZE], 0.05)
        assert 0 <= largest <= 1.7321


def test_a_killed_run_goes_on_with_the_same_size(runs):
    whole, before, resumed = runs
    assert 2 in before and sorted(resumed) == list(range(1, STEPS + 1))
    assert [resumed[step][SIZE] for step in resumed] == pytest.approx([whole[step][SIZE] for step in whole], rel=1e-5)
