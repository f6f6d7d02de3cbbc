"""The export of a finished stage's model: whole or not there, and only as much space as it needs."""

from __future__ import annotations

import errno
import resource
import signal
from pathlib import Path

import pytest

from s2l_ext.errors import ResourceError
from s2l_ext.pipeline import runner
from s2l_ext.utils.digests import Digests


def model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(runner.os, "link", refuse)


@pytest.mark.parametrize("linked", [True, False])
def test_an_export_takes_no_more_space_where_links_are_possible(tmp_path, monkeypatch, linked: bool) -> None:
    """What a killed export left is not taken over."""
    source, target = model(tmp_path / "source"), tmp_path / "models" / "m"
    left = target.with_name("m.tmp") / "model.safetensors"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    if not linked:
        no_links(monkeypatch)
    files = runner.export(source, target, Digests(tmp_path / ".digests.json"), "opd")
    assert "model.safetensors" in files and (target / "model.safetensors").read_text() == "{}"
    assert (target / "model.safetensors").samefile(source / "model.safetensors") is linked


def test_a_file_that_the_system_cuts_short_is_not_exported(tmp_path, monkeypatch) -> None:
    no_links(monkeypatch)
    source = model(tmp_path / "source")
    (source / "model.safetensors").write_bytes(bytes(200_000))
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(ResourceError, match=r"models/m: File too large \(.* GB free\)\. Training is finished"):
            runner.export(source, tmp_path / "models" / "m", Digests(tmp_path / ".digests.json"), "opd")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert list((tmp_path / "models").iterdir()) == []
