"""Rewards by name, by place and by file; an installed package brings one along; what cannot be loaded is named."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from s2l_ext.errors import ConfigError, DataError
from s2l_ext.evaluation.grading import load_reward
from s2l_ext.rewards import code, math, registry, toy

OWN = Path(__file__).parents[2] / "examples" / "own_reward"
FILE = OWN / "own_reward" / "__init__.py"


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("math", math.compute_score),
        ("code", code.compute_score),
        ("toy", toy.compute_score),
        ("s2l_ext.rewards.math", math.compute_score),
        ("pkg://s2l_ext.rewards.math", math.compute_score),
        ("pkg://s2l_ext/rewards/math", math.compute_score),
        ("s2l_ext.rewards.toy:extract_answer", toy.extract_answer),
    ],
)
def test_names_and_places(name, function):
    assert registry.load(name) is function
    assert load_reward(name) is function


def test_every_built_in_name_loads():
    assert [registry.load(name).__module__ for name in registry.NAMES] == [
        f"s2l_ext.rewards.{n}" for n in registry.NAMES
    ]


@pytest.mark.slow
def test_a_file(monkeypatch):
    found = registry.load(f"{FILE}:compute_score")
    assert found("x", "\\boxed{12 cm}", "12 cm")["score"] == 1.2
    monkeypatch.chdir(OWN)
    assert registry.load("own_reward/__init__.py")("x", "\\boxed{12}", "12 cm") == {
        "score": 1.0,
        "acc": 1.0,
        "format_ok": 1.0,
        "extracted": "12",
    }
    assert found("x", "\\boxed{13 cm}", "12 cm", unit_weight=0.5)["score"] == 0.0


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "maths",
            r"unknown reward 'maths'\. Did you mean 'math'\? Known: math, code, choice, quantity",
        ),
        ("zzzzz", "unknown reward 'zzzzz'. Known: math, code, .*, toy; or give package.module:function"),
        ("", "reward '' is neither a name"),
        (":f", "reward ':f' is neither a name"),
        ("nowhere.at_all:f", "ModuleNotFoundError: No module named 'nowhere'"),
        ("s2l_ext.rewards.toy:nothing", "has no function 'nothing'"),
        ("s2l_ext.rewards.toy:BOXED", "BOXED is Pattern, no function"),
        ("nowhere.py:f", "no file .*nowhere.py. A relative path starts at the current folder"),
    ],
)
def test_what_is_not_there_is_refused(name, message):
    with pytest.raises(ConfigError, match=message):
        registry.load(name)
    with pytest.raises(DataError, match=f"--reward {name}: "):
        load_reward(name)


def test_a_file_that_fails_is_named(tmp_path):
    broken = tmp_path / "broken.py"
    broken.write_text("1 / 0")
    with pytest.raises(ConfigError, match=r"broken\.py cannot be run \(ZeroDivisionError"):
        registry.load(f"{broken}:f")


def test_evaluation_refuses_a_coroutine():
    with pytest.raises(DataError, match="a coroutine function"):
        load_reward("s2l_ext.rewards.math:compute_score_async")


def points(*pairs):
    return lambda group: [EntryPoint(name, value, group) for name, value in pairs]


def test_a_name_used_twice_is_refused(monkeypatch):
    monkeypatch.setattr(registry, "entry_points", points(("mine", "a:f"), ("mine", "b:f")))
    with pytest.raises(ConfigError, match=r"'mine' of an installed package \(entry point b:f\) is already .* a:f"):
        registry.load("mine")
    monkeypatch.setattr(registry, "entry_points", points(("math", "a:f")))
    with pytest.raises(ConfigError, match="'math' .* is already the name of s2l_ext.rewards.math:compute_score"):
        registry.load("toy")


def test_the_same_entry_point_twice_is_one(monkeypatch):
    twice = ("mine", "s2l_ext.rewards.toy:extract_answer")
    monkeypatch.setattr(registry, "entry_points", points(twice, twice))
    assert registry.load("mine") is toy.extract_answer
    assert list(registry.rewards()) == [*registry.NAMES, "mine"]


def test_verls_way_to_a_name():
    found = registry.compute_score("gsm8k", "<answer>72</answer>", "72", {}, reward="math", extraction="tags")
    assert found["score"] == 1.0
    for missing in ({}, {"reward": ""}, {"reward": 3}):
        with pytest.raises(ConfigError, match=r"reward=.* must be a name: math, code, choice"):
            registry.compute_score("gsm8k", "72", "72", {}, **missing)
    with pytest.raises(ConfigError, match="coroutine function, which this call cannot await"):
        registry.compute_score("gsm8k", "72", "72", {}, reward="s2l_ext.rewards.math:compute_score_async")


@pytest.mark.slow
def test_an_installed_package_brings_its_reward(tmp_path):
    """Built and installed as its README says, into a folder of its own."""
    copy = tmp_path / "source"
    (copy / "own_reward").mkdir(parents=True)
    for name in ("pyproject.toml", "own_reward/__init__.py"):
        (copy / name).write_text((OWN / name).read_text(encoding="utf-8"), encoding="utf-8")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*command, "--target", str(site), str(copy)], check=True, capture_output=True, timeout=300)
    script = (
        "from s2l_ext.rewards import registry\n"
        "print(list(registry.rewards()), registry.load('unit_answer')('x', r'\\boxed{12 cm}', '12 cm')['score'])\n"
        "print(registry.compute_score('x', r'\\boxed{12 cm}', '12 cm', {}, reward='unit_answer', unit_weight=1.0))"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    first, second = done.stdout.splitlines()
    assert first == f"{[*registry.NAMES, 'unit_answer']} 1.2"
    assert "'score': 2.0" in second
