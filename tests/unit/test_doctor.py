"""`s2l doctor`: what it says of this environment, and that each fault is told with its fix and the exit code."""

import json

import pytest

from s2l_ext import cli, doctor
from s2l_ext.rewards import sandbox


def test_this_environment_is_sound(capsys) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    findings = {finding["name"]: finding for finding in json.loads(capsys.readouterr().out)}
    assert findings["verl"]["found"] == "0.9.1, made for 0.9.1"
    assert set(findings) == {"packages", "verl", "registration", "accelerator", "machine", "sandbox"}
    assert sandbox.active_level().name.lower() in findings["sandbox"]["found"]


@pytest.mark.parametrize(
    ("attribute", "value", "words"),
    [
        ("_version", lambda name: "0.9.0" if name == "verl" else None, "pip install verl==0.9.1"),
        ("entry_points", lambda group: [], "pip install -e ."),
    ],
)
def test_a_fault_has_a_fix_and_an_exit_code(monkeypatch, capsys, attribute: str, value: object, words: str) -> None:
    monkeypatch.setattr(doctor, attribute, value)
    assert cli.main(["doctor"]) == 1
    assert words in capsys.readouterr().out


def test_a_sandbox_below_the_minimum_is_a_fault(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sandbox, "minimum_level", lambda: max(sandbox.Level))
    monkeypatch.setattr(sandbox, "active_level", lambda: min(sandbox.Level))
    assert cli.main(["doctor"]) == 1
    assert "docs/sandbox.md" in capsys.readouterr().out


def test_no_sandbox_at_all_is_told_in_words(monkeypatch, capsys) -> None:
    def broken():
        raise RuntimeError("no user namespaces")

    monkeypatch.setattr(sandbox, "active_level", broken)
    assert cli.main(["doctor"]) == 1
    assert "unavailable: no user namespaces" in capsys.readouterr().out
