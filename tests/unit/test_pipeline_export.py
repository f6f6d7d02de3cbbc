"""The copy of a finished stage's model: whole or not there, and only as much space as it needs."""

from __future__ import annotations

import resource
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest

from s2l_ext.errors import ResourceError
from s2l_ext.pipeline import runner
from s2l_ext.utils.digests import Digests


def model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer.json", "model.safetensors"):
        (folder / name).write_text("{}")
    return folder


def test_what_a_killed_export_left_is_not_counted_as_taken_space(tmp_path, monkeypatch) -> None:
    source = model(tmp_path / "source")
    left = tmp_path / "models" / "m.tmp" / "half"
    left.parent.mkdir(parents=True)
    left.write_bytes(b"half")
    free = {True: 0, False: 10**9}
    monkeypatch.setattr(runner.shutil, "disk_usage", lambda _: SimpleNamespace(free=free[left.exists()]))
    assert "model.safetensors" in runner.export(
        source, tmp_path / "models" / "m", Digests(tmp_path / ".digests.json"), "opd"
    )


def test_a_file_that_the_system_cuts_short_is_not_exported(tmp_path) -> None:
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
