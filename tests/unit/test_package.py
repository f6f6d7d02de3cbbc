"""What wheel and sdist carry; what a Python that is not supported is told; ``long``: the wheel outside the clone."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest

import s2l_ext

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "outputs", "build", "dist", "*.egg-info", "tests", "docs")
BUILD = "import sys, setuptools.build_meta as b; print(getattr(b, 'build_' + sys.argv[1])(sys.argv[2]))"


def build(kind: str, source: Path, out: Path) -> Path:
    command = [sys.executable, "-c", BUILD, kind, str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> tuple[Path, Path]:
    """Wheel and sdist, the wheel made from the sdist alone: it must have all that a wheel needs."""
    folder = tmp_path_factory.mktemp("package")
    shutil.copytree(REPOSITORY, folder / "clone", symlinks=True, ignore=NOT_SOURCE)
    sdist = build("sdist", folder / "clone", folder)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    return build("wheel", folder / sdist.name.removesuffix(".tar.gz"), folder), sdist


def read(wheel: Path, name: str) -> str:
    with zipfile.ZipFile(wheel) as archive:
        return archive.read(f"s2l_ext-{s2l_ext.__version__}.dist-info/{name}").decode()


def project() -> dict[str, str]:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def test_the_wheel_has_every_file_of_the_package_and_no_other(built) -> None:
    files = [path for path in (REPOSITORY / "s2l_ext").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    want = {path.relative_to(REPOSITORY).as_posix() for path in files if "recipes" not in path.parts}
    recipes = [path for path in (REPOSITORY / "recipes").rglob("*") if path.is_file()]
    want |= {f"s2l_ext/recipes/{path.relative_to(REPOSITORY / 'recipes').as_posix()}" for path in recipes}
    with zipfile.ZipFile(built[0]) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert (sorted(want - found), sorted(found - want)) == ([], [])
    assert "s2l_ext/recipes/s2l_po/toy.yaml" in found and "s2l_ext/toy/world.py" in found  # what s2l demo starts from


def test_the_sdist_has_licence_notice_and_readme(built) -> None:
    with tarfile.open(built[1]) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "NOTICE", "README.md", "pyproject.toml", "s2l_ext/recipes/grpo/toy.yaml"} <= found


def test_the_metadata_says_what_the_project_says(built) -> None:
    metadata, settings = email.message_from_string(read(built[0], "METADATA")), project()
    assert (metadata["Name"], metadata["Version"]) == ("s2l-ext", s2l_ext.__version__)
    assert set(metadata["Requires-Python"].split(",")) == set(settings["requires-python"].split(","))
    assert metadata["License-Expression"] == "Apache-2.0" and metadata.get_all("License-File") == ["LICENSE", "NOTICE"]
    assert {"cpu", "gpu", "flash", "smollm2"} <= set(metadata.get_all("Provides-Extra"))
    for name in ("LICENSE", "NOTICE"):
        assert read(built[0], f"licenses/{name}") == (REPOSITORY / name).read_text()


def test_the_entry_points_are_there(built) -> None:
    points = ConfigParser()
    points.read_string(read(built[0], "entry_points.txt"))
    assert {group: dict(points[group]) for group in points.sections()} == {
        "console_scripts": {"s2l": "s2l_ext.cli:main"},
        "verl.plugins": {"s2l": "s2l_ext.plugin"},
        "vllm.general_plugins": {"s2l": "s2l_ext.plugin:register_vllm"},
    }


# ---- a Python that is not supported ---------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.10", "3.13"])
def test_pip_refuses_the_wheel_on_another_python(built, tmp_path, version) -> None:
    words = ["--no-index", "--no-deps", "--only-binary=:all:", "--python-version", version, "-d", str(tmp_path)]
    command = [sys.executable, "-m", "pip", "download", *words, str(built[0])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert re.search(
        rf"'s2l-ext' requires a different Python: {version}\.0 not in '(<3\.13,>=3\.11|>=3\.11,<3\.13)'", done.stderr
    )


def test_make_setup_names_the_version_and_the_fix(tmp_path) -> None:
    python = tmp_path / "python3.13"
    script = "import sys; sys.version_info = (3, 13, 0, 'final', 0); exec(sys.argv.pop(1))"
    python.write_text(f'#!/bin/sh\nshift\nexec {sys.executable} -c "{script}" "$@"\n')
    python.chmod(0o755)
    command = ["make", "setup", f"PYTHON={python}", f"VENV={tmp_path / 'venv'}"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and not (tmp_path / "venv").exists()
    assert "the lock is for CPython 3.11, found 3.13 at " in done.stderr
    assert "Install python3.11 or run: make PYTHON=/path/to/python3.11 setup" in done.stderr


# ---- outside the clone ----------------------------------------------------------------------------------------------


@pytest.mark.e2e
@pytest.mark.long
def test_the_installed_wheel_works_outside_the_clone(built, tmp_path) -> None:
    """Its requirements are those of this environment, the package itself is the wheel's."""
    venv.create(tmp_path / "venv", with_pip=False, symlinks=True)
    python = tmp_path / "venv" / "bin" / "python"
    (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(built[0])]
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    here = Path(pytest.__file__).parents[1]
    (site / "requirements.pth").write_text(f"{here}\n")
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}

    def s2l(*words: str) -> str:
        done = subprocess.run(
            [tmp_path / "venv" / "bin" / "s2l", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    where = subprocess.run(
        [python, "-c", "import s2l_ext; print(s2l_ext.__file__)"], cwd=tmp_path, env=environment, capture_output=True
    )
    assert Path(where.stdout.decode().strip()).is_relative_to(site)
    assert "s2l train" in s2l("--help")
    s2l("data", "toy", "--out", "outputs/toy", "--sizes", "small,medium")
    assert s2l("check", "--config-name", "s2l_po/toy").endswith("s2l check: OK.\n")
