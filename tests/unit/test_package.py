"""What is built from the clone, what refuses a Python that it is not for, and that extras, image and locks agree."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "NOTICE", "s2l_ext", "recipes")
BUILD = "from setuptools import build_meta; build_meta.build_sdist('dist'); build_meta.build_wheel('dist')"
STARTED_BY = re.compile(r"^(COPY|FROM) (.+)$", re.MULTILINE)


def files_of(folder: str) -> set[str]:
    """Recipes and package data as they stand in the clone."""
    kinds = (".py", ".yaml", ".md", ".sh", ".jinja")
    return {str(path.relative_to(ROOT)) for path in (ROOT / folder).rglob("*") if path.suffix in kinds}


@pytest.fixture(scope="module")
def dist(tmp_path_factory) -> Path:
    """A folder with the sdist, and with the wheel that was built from what the sdist holds."""
    home = tmp_path_factory.mktemp("build")
    for name in SOURCES:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy2
        more = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")} if copy is shutil.copytree else {}
        copy(ROOT / name, home / name, **more)
    run(BUILD.partition("; build_meta.build_wheel")[0], home)
    with tarfile.open(next((home / "dist").glob("*.tar.gz"))) as archive:
        archive.extractall(home / "unpacked", filter="data")
    [unpacked] = (home / "unpacked").iterdir()
    run(BUILD, unpacked)
    return unpacked / "dist"


def run(code: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.slow
def test_wheel_and_sdist_hold_every_file_of_the_package(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        held = set(wheel.namelist())
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        source = {name.partition("/")[2] for name in archive.getnames()}
    wanted = files_of("s2l_ext") | {f"s2l_ext/{name}" for name in files_of("recipes")}
    assert wanted - held == set() and wanted - source == set()
    assert {name.split("/")[0] for name in held} == {"s2l_ext", f"s2l_ext-{PROJECT['version']}.dist-info"}
    assert {"s2l_ext/recipes/s2l_po/toy.yaml", "s2l_ext/recipes/hub/gsm8k.yaml"} <= held
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml"} <= source


@pytest.mark.slow
def test_the_wheel_says_licence_pythons_and_entry_points(dist: Path) -> None:
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        info = f"s2l_ext-{PROJECT['version']}.dist-info"
        headers = HeaderParser().parsestr(wheel.read(f"{info}/METADATA").decode())
        points = configparser.ConfigParser()
        points.read_string(wheel.read(f"{info}/entry_points.txt").decode())
        for name in ("LICENSE", "NOTICE"):
            assert wheel.read(f"{info}/licenses/{name}") == (ROOT / name).read_bytes()
    assert headers["License-Expression"] == "Apache-2.0" and headers["Requires-Python"] == "<3.13,>=3.11"
    assert points["console_scripts"]["s2l"] == "s2l_ext.cli:main"
    assert points["verl.plugins"]["s2l"] == "s2l_ext.plugin"
    assert points["vllm.general_plugins"]["s2l"] == "s2l_ext.plugin:register_vllm"


@pytest.mark.slow
@pytest.mark.parametrize("python, taken", [("3.10", False), ("3.11", True), ("3.12", True), ("3.13", False)])
def test_pip_refuses_another_python_and_says_which_it_is_for(dist: Path, tmp_path: Path, python, taken) -> None:
    words = ["download", "--no-deps", "--only-binary", ":all:", "--python-version", python, "-d", str(tmp_path)]
    wheel = next(dist.glob("*.whl"))
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words, str(wheel)], capture_output=True, text=True, timeout=120
    )
    assert (done.returncode == 0) == taken
    refusal = rf"Package 's2l-ext' requires a different Python: {python}(\.0)? not in '<3\.13,>=3\.11'"
    assert taken or re.search(refusal, done.stderr)


@pytest.mark.slow
def test_make_setup_refuses_another_python_and_says_what_to_run(tmp_path: Path) -> None:
    other = tmp_path / "python3.13"
    pretend = "import sys; sys.version_info = (3, 13, 0); sys.executable = sys.argv[2]; exec(sys.argv[1])"
    other.write_text(f'#!/bin/sh\nexec {sys.executable} -c \'{pretend}\' "$2" "$0"\n')
    other.chmod(0o755)
    command = ["make", "setup", f"PYTHON={other}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and not (tmp_path / "venv").exists()
    assert (
        f"the lock is for CPython 3.11, found 3.13 at {other}. Install python3.11 or run: make PYTHON=" in done.stderr
    )


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
