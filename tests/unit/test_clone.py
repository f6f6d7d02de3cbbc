"""The commit of this package's clone, and none of a repository that an installed package lies in."""

import subprocess
from pathlib import Path

import s2l_ext
from s2l_ext.studies.study.file import Study, StudyBlock
from s2l_ext.studies.study.run import Runner
from s2l_ext.utils.clone import code_version, git_of_clone

HEAD = ("rev-parse", "--short=12", "HEAD")
WHO = ("-c", "user.name=a", "-c", "user.email=a@b.c")


def test_an_installed_package_inside_a_repository_has_no_commit(tmp_path: Path, monkeypatch) -> None:
    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", tmp_path, *words], capture_output=True, text=True, check=True).stdout

    git("init", "-q")
    git(*WHO, "commit", "-q", "--allow-empty", "-m", "a user's")
    users = git("rev-parse", "HEAD").strip()
    study = Study(StudyBlock("tiny", "grpo/toy", {}, "grpo"), (), ())
    for place, commit in ((tmp_path / "venv" / "site-packages", ""), (tmp_path, users)):
        monkeypatch.setattr(s2l_ext, "__file__", str(place / "s2l_ext" / "__init__.py"))
        assert git_of_clone(*HEAD) == commit[:12]
        assert Runner(study, tmp_path).commit == (commit[:12] or s2l_ext.__version__)


def test_a_change_that_is_not_committed_is_another_version(tmp_path: Path, monkeypatch) -> None:
    """Only what is in the package counts."""

    def git(*words: str) -> None:
        subprocess.run(["git", "-C", tmp_path, *words], capture_output=True, check=True)

    package = tmp_path / "s2l_ext"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    (tmp_path / "README.md").write_text("one\n")
    git("init", "-q")
    git("add", "-A")
    git(*WHO, "commit", "-q", "-m", "first")
    monkeypatch.setattr(s2l_ext, "__file__", str(package / "__init__.py"))
    clean = code_version()
    (tmp_path / "README.md").write_text("two\n")
    assert code_version() == clean == git_of_clone(*HEAD)
    versions = {clean}
    for text in ("x = 2\n", "x = 3\n"):
        (package / "a.py").write_text(text)
        versions.add(code_version())
    (package / "b.py").write_text("new\n")
    versions.add(code_version())
    assert len(versions) == 4 and all(version.startswith(clean) for version in versions)
