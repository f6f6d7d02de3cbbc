"""Shared by the tests of configuration rules, and by those of the converters."""

import functools
import importlib.util
import json
import pickle
import socket
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest
from omegaconf import DictConfig, OmegaConf, open_dict

from s2l_ext.errors import ConfigError
from s2l_ext.launch.accelerators import GIB
from s2l_ext.launch.compose import compose_config
from s2l_ext.methods.registry import parse_s2l
from s2l_ext.training.rules import check_against_verl


@pytest.fixture(scope="session")
def composed_once() -> Callable[..., DictConfig]:
    """``compose_config`` that gives a copy of what it composed before: pickle copies eight times as fast."""
    composed = functools.cache(lambda name, *rest: pickle.dumps(compose_config(name, *rest)))
    return lambda name, *rest: pickle.loads(composed(name, *map(tuple, rest)))


@pytest.fixture(scope="session")
def rules(composed_once) -> Callable[[str], SimpleNamespace]:
    """``rules("expo/toy")`` -> ``check(a__b=1)``, the recipe's warnings with ``a.b`` set, and ``refused(a__b=1)``,
    the words of its refusal."""

    def of(recipe: str) -> SimpleNamespace:
        composed = composed_once(recipe, [])

        def check(**settings: object) -> list[str]:
            cfg = composed_once(recipe, [])
            with open_dict(cfg):
                for name, value in settings.items():
                    OmegaConf.update(cfg, name.replace("__", "."), value, force_add=True)
            return check_against_verl(parse_s2l(cfg.s2l), cfg)

        def refused(**settings: object) -> str:
            with pytest.raises(ConfigError) as refusal:
                check(**settings)
            return str(refusal.value)

        return SimpleNamespace(check=check, refused=refused, composed=composed)

    return of


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with one card of 24 GB, and a vLLM for it."""
    monkeypatch.setattr("s2l_ext.platforms.accelerator_present", lambda: True)
    monkeypatch.setattr("s2l_ext.platforms._has_cpu_engine", lambda: False)
    for name in ("VERL_PLATFORM", "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: SimpleNamespace(total_memory=24 * GIB))


@pytest.fixture
def configured(composed_once: Callable[..., Any]) -> Callable[..., Any]:
    """A recipe's configuration with settings, ``__`` for the dots of a key."""

    def make(recipe: str = "s2l_po/qwen3_1.7b_to_8b", **settings: object) -> Any:
        cfg = composed_once(recipe, [])
        with open_dict(cfg):
            for key, value in settings.items():
                OmegaConf.update(cfg, key.replace("__", "."), value, force_add=True)
        return cfg

    return make


@pytest.fixture(scope="session")
def module_at() -> Callable[..., ModuleType]:
    """``module_at(path)``: a file outside the package as a module, under a name of its own."""

    def load(path: Path, name: str = "") -> ModuleType:
        spec = importlib.util.spec_from_file_location(name or f"s2l_of_tests_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module  # dataclasses look their module up
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture
def no_cluster_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.fixture(scope="session")
def jsonl() -> Callable[[Path, list[Any]], Path]:
    """Writes one JSON value a line."""

    def write(path: Path, rows: list[Any]) -> Path:
        path.write_text("".join(f"{json.dumps(record)}\n" for record in rows))
        return path

    return write


@pytest.fixture(scope="session")
def rows_of() -> Callable[[Path], list[dict[str, Any]]]:
    return lambda path: pq.read_table(path).to_pylist()


class Page(HTMLParser):
    """Every element of an HTML text, each of which is closed in turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.elements = [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    @property
    def drawings(self) -> int:
        return sum(tag == "svg" for tag, _ in self.elements)

    @property
    def links(self) -> list[str]:
        return [attrs[name] for _, attrs in self.elements for name in ("src", "href") if name in attrs]

    def of_class(self, name: str) -> list[dict[str, str]]:
        return [attrs for _, attrs in self.elements if name in (attrs.get("class") or "").split()]


@pytest.fixture(scope="session")
def read_page() -> type[Page]:
    return Page
