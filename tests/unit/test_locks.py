"""Extras, Dockerfile and `make lock` name the versions of the locks."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
STARTED_BY = re.compile(r"^(COPY|FROM) (.+)$", re.MULTILINE)


def locked(name: str) -> dict[str, str]:
    lines = (ROOT / "requirements" / name).read_text()
    return dict(re.findall(r"^([\w.-]+)(?:\[\w+\])?==([^ ;\\]+)", lines, re.MULTILINE))


@pytest.mark.parametrize("extra, lock", [("cpu", "cpu.lock"), ("gpu", "gpu.lock")])
def test_what_an_extra_pins_is_what_its_lock_has(extra: str, lock: str) -> None:
    pins = dict(line.split("==") for line in PROJECT["optional-dependencies"][extra])
    versions = {name: number.partition("+")[0] for name, number in locked(lock).items()}
    assert {name: versions[name] for name in pins} == pins
    assert versions["verl"] == "0.9.1"


def test_the_dockerfile_names_what_exists_and_the_python_of_the_lock() -> None:
    text = (ROOT / "Dockerfile").read_text()
    ignored = (ROOT / ".dockerignore").read_text().split()
    stages = re.findall(r" AS (\w+)", text)
    for word, rest in STARTED_BY.findall(text):
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
        elif rest.split()[0] not in stages:
            assert rest.split()[0] == f"python:{lock_python()}-slim"
    for name in re.findall(r"requirements/[\w.-]+", text):
        assert (ROOT / name).is_file() and name not in ignored
    assert stages == ["base", "cpu", "gpu"] and not {"requirements", "recipes", "Makefile"} & set(ignored)


def lock_python() -> str:
    [version] = set(re.findall(r"--python-version (\S+).*?-o \$\(LOCK\)", (ROOT / "Makefile").read_text(), re.DOTALL))
    return version


def test_the_locks_are_made_without_the_settings_of_uv_sync() -> None:
    """They leave torchvision out, which vLLM for CUDA has in its lock."""
    recipe = (ROOT / "Makefile").read_text()
    assert recipe.count("uv pip compile") == recipe.count(
        "uv pip compile pyproject.toml --quiet --no-config --no-sources"
    )
    assert "torchvision" in locked("gpu.lock") and "torchvision" not in locked("cpu.lock")
