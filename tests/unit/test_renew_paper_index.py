"""``make docs-index`` follows moved lines and leaves to a person what it cannot know."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "renew_paper_index.py"
spec = importlib.util.spec_from_file_location("renew_paper_index", SCRIPT)
renew = importlib.util.module_from_spec(spec)
spec.loader.exec_module(renew)


@pytest.fixture
def code(tmp_path):
    (tmp_path / "s2l_ext").mkdir()
    (tmp_path / "s2l_ext" / "a.py").write_text("import x\n\ndef f():\n    return x\n\ndef g():\n    return x\n")
    return tmp_path


def test_moved_lines_are_followed_and_the_rest_stays(code):
    before = "| Eq. 1 | `s2l_ext/a.py:1` `def f` | what |\n| Eq. 2 | `s2l_ext/a.py:6` `def g` | `verl` |\n"
    text, moved, lost = renew.renewed(before, code)
    assert text == before.replace("a.py:1`", "a.py:3`")
    assert moved == ["s2l_ext/a.py:1 -> 3 `def f`"] and lost == []


@pytest.mark.parametrize(("line", "found"), [(1, 4), (4, 4), (6, 7), (99, 7)])
def test_the_nearest_of_several_lines_is_taken(line, found, code):
    text, _, lost = renew.renewed(f"`s2l_ext/a.py:{line}` `return x`", code)
    assert text == f"`s2l_ext/a.py:{found}` `return x`" and not lost


@pytest.mark.parametrize(
    ("entry", "why"),
    [
        ("`s2l_ext/a.py:3` `def h`", "the text is in no line"),
        ("`s2l_ext/b.py:3` `def f`", "No such file"),
        ("`s2l_ext/a.py:2` `x`", "lines 1 and 3 are equally near"),
    ],
)
def test_what_cannot_be_known_is_told_and_kept(entry, why, code):
    (code / "s2l_ext" / "a.py").write_text("x\n\nx def f\n")
    text, moved, lost = renew.renewed(entry, code)
    assert text == entry and moved == [] and len(lost) == 1 and why in lost[0]


def test_nothing_is_written_when_an_entry_is_lost(code, monkeypatch, capsys):
    index = code / "paper_index.md"
    index.write_text("`s2l_ext/a.py:1` `def f`\n`s2l_ext/a.py:1` `gone`\n")
    monkeypatch.setattr(renew, "ROOT", code)
    monkeypatch.setattr(renew, "INDEX", index)
    assert renew.main() == 1
    assert "`gone`" in capsys.readouterr().err and "a.py:1` `def f`" in index.read_text()
    index.write_text("`s2l_ext/a.py:1` `def f`\n")
    assert renew.main() == 0
    assert index.read_text() == "`s2l_ext/a.py:3` `def f`\n"
